"""The folders of an experiment: data/<exp>/epoch<k>/. The state of a run is what is on disk.

config.json              resolved settings
error.json               the error that ended the last run, until a run starts
index.html, pairs.png    the page and the contact sheet
thresholds.json          thresholds that were saved in the browser app
epoch0/
  manifest.json          what samples depend on, prompts with items, prompt of every sample
  images/00000.png       every sample of the round
  trajectories/00000.safetensors   latents (T+1, C, h, w): x_T … x_0; maps (T, I, gh, gw)
  eval/images.json       scores of images/; of a weighted sum, also those of its parts
  eval/watch.json        scores of images/ by a scorer that training never sees, if there is one
  pairs.json             reference and base of every pair
  base_images/, reference_images/, target_images/, masks/    00000.png: by pair
  targets/00000.safetensors        latents (T+1, C, h, w); masks (T, gh, gw)
  eval/target_images.json          scores of target_images/
  adoption.json          per pair: scores, whether the target is adopted (Eq. 7)
  inversions/00000.safetensors     DDIM-inverted latents (T+1, C, h, w) of a target, if asked for
  dropped.json           only if trajectories, targets and inversions are no longer kept
compare/epoch0/          manifest, images and scores of samples of the policy after 0, … rounds of
                         training; the noise is the same each time
checkpoints/epoch0/      the policy after training on round 0
metrics.jsonl            figures of every update and round
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.method.pairing import Pair
from dfusion.method.prompts import Item, Prompt
from dfusion.storage.files import read_json, write_json
from dfusion.storage.formats import check_adoption, check_manifest, check_pairs, check_scores

_EPOCH = re.compile(r"^epoch(\d+)$")
PAIRED = ("base_images", "reference_images", "masks", "target_images")  # one of each per pair
SCORED = ("images", "target_images")
WATCH = "watch"  # scores of images/ by --config.eval.watch
STATES = ("trajectories", "targets", "inversions")  # folders of states, by far the largest files
DROPPED = "dropped.json"
# What samples and pairs were made with where these files do not say; no size is the model's own.
USUAL: dict[str, dict[str, Any]] = {
    "manifest.json": {"size": None, "maps": "prompt"},
    "pairs.json": {"mask place": "items", "target kind": "attention", "fusion text": "fused"},
}
Mean = Sequence[tuple[float, float]]


class Round:
    """Paths and small files of one round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def image(self, kind: str, index: int) -> Path:
        """kind: images, base_images, reference_images, target_images or masks."""
        return self.folder / kind / f"{index:05d}.png"

    def trajectory(self, index: int) -> Path:
        return self.folder / "trajectories" / f"{index:05d}.safetensors"

    def target(self, pair: int) -> Path:
        return self.folder / "targets" / f"{pair:05d}.safetensors"

    def inversion(self, pair: int) -> Path:
        return self.folder / "inversions" / f"{pair:05d}.safetensors"

    @property
    def states_kept(self) -> bool:
        """Whether the round still has its states (--config.keep_trajectories)."""
        return not (self.folder / DROPPED).exists()

    def drop_states(self) -> None:
        """Delete the states. The note comes first, so an interrupted drop is finished later."""
        if self.states_kept:
            write_json(self.folder / DROPPED, {"dropped": STATES})
        for kind in STATES:
            if (folder := self.folder / kind).exists():
                shutil.rmtree(folder)

    def scores_file(self, kind: str) -> Path:
        return self.folder / "eval" / f"{kind}.json"

    def write_manifest(
        self,
        round_: int,
        prompts: tuple[Prompt, ...],
        each: int,
        made_with: dict[str, Any],
        mean: Mean = (),
    ) -> None:
        """The plan of a round: `each` samples of every prompt, prompt by prompt.

        made_with: everything else that the samples depend on. mean: see `manifest_of`.
        """
        manifest = manifest_of(round_, prompts, each, made_with, mean)
        write_json(self.folder / "manifest.json", manifest)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None if the round has not begun."""
        path = self.folder / "manifest.json"
        return _complete(path, _checked(path, check_manifest)) if path.exists() else None

    def sample_prompts(self) -> list[Prompt]:
        """The prompt of every sample; empty if the round has not begun."""
        manifest = self.manifest()
        if manifest is None:
            return []
        prompts = [
            Prompt(p["text"], tuple(Item(**item) for item in p["items"]))
            for p in manifest["prompts"]
        ]
        return [prompts[i] for i in manifest["samples"]]

    def write_pairs(self, pairs: tuple[Pair, ...], made_with: dict[str, Any]) -> None:
        """made_with: everything that the pairs and their targets depend on."""
        rows = [asdict(p) for p in pairs]
        write_json(self.folder / "pairs.json", {"made_with": made_with, "pairs": rows})

    def pairs(self) -> tuple[Pair, ...] | None:
        path = self.folder / "pairs.json"
        if not path.exists():
            return None
        return tuple(Pair(**p) for p in _checked(path, check_pairs)["pairs"])

    def pairs_made_with(self) -> dict[str, Any]:
        """What the pairs and their targets depend on, as given to write_pairs."""
        path = self.folder / "pairs.json"
        return _complete(path, _checked(path, check_pairs))["made_with"]

    def made_with(self, file: str) -> dict[str, Any]:
        """The "made_with" of manifest.json, pairs.json or adoption.json; empty if it has none."""
        return _complete(self.folder / file, read_json(self.folder / file))["made_with"]

    def check_made_with(self, file: str, now: dict[str, Any], remedy: str) -> None:
        """Raise UserError if manifest.json or pairs.json was made with other settings."""
        path, before = self.folder / file, self.made_with(file)
        changed = [f"{k} ({before.get(k)} -> {v})" for k, v in now.items() if before.get(k) != v]
        if changed:
            raise UserError(f"{path}: made with other settings: {', '.join(changed)}; {remedy}")

    def texts_to_score(self, kind: str) -> list[str]:
        """Prompt text of every image of a scored kind; empty if not known yet."""
        if kind in ("images", WATCH):
            return [prompt.text for prompt in self.sample_prompts()]
        return [pair.prompt for pair in self.pairs() or ()]

    def write_scores(
        self,
        kind: str,
        reward: str,
        scores: dict[int, float],
        parts: dict[str, dict[int, float]] | None = None,
    ) -> None:
        """parts: what each reward of a weighted sum gave, by its name."""
        value: dict[str, Any] = {"reward": reward, "scores": _ordered(scores)}
        if parts:
            value["parts"] = {name: _ordered(given) for name, given in parts.items()}
        write_json(self.scores_file(kind), value)

    def scored_by(self, kind: str) -> str | None:
        """The name of the reward that scored a kind; None if nothing is scored."""
        path = self.scores_file(kind)
        return _checked(path, check_scores)["reward"] if path.exists() else None

    def scores(self, kind: str, reward: str | None = None) -> dict[int, float]:
        """Scores by image index; empty if there are none.

        Raises UserError if they come from another reward than `reward`.
        """
        path = self.scores_file(kind)
        if not path.exists():
            return {}
        value = _checked(path, check_scores)
        if reward is not None and value["reward"] != reward:
            raise UserError(
                f"{path}: scored by {value['reward']}, but --config.eval asks for {reward}; "
                "use that reward, or delete the file to have the images scored again"
            )
        return {int(i): score for i, score in value["scores"].items()}

    def score_parts(self, kind: str) -> dict[str, dict[int, float]]:
        """What each reward of a weighted sum gave, by its name; empty if there is no sum."""
        path = self.scores_file(kind)
        parts = _checked(path, check_scores).get("parts", {}) if path.exists() else {}
        return {
            name: {int(i): score for i, score in given.items()} for name, given in parts.items()
        }

    def scores_by_text(self) -> dict[str, list[float]]:
        """Scores of the images that have one, by prompt text."""
        scores = self.scores("images")
        grouped: dict[str, list[float]] = {}
        for index, text in enumerate(self.texts_to_score("images")):
            if index in scores:
                grouped.setdefault(text, []).append(scores[index])
        return grouped

    def write_adoption(self, rows: list[dict[str, Any]], made_with: dict[str, Any]) -> None:
        """made_with: the rule, and the threshold of Eq. 7."""
        write_json(self.folder / "adoption.json", {"made_with": made_with, "pairs": rows})

    def adoption(self) -> list[dict[str, Any]] | None:
        """Per pair: base, reference and target score, adopted; None if not decided yet."""
        path = self.folder / "adoption.json"
        return _checked(path, check_adoption)["pairs"] if path.exists() else None


class Experiment:
    """data/<exp>/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def round(self, number: int) -> Round:
        return Round(self.folder / f"epoch{number}")

    def rounds(self) -> dict[int, Round]:
        """Rounds on disk, in order."""
        return {n: self.round(n) for n in _numbers(self.folder)}

    def comparison(self, number: int) -> Round:
        """Samples of the policy after `number` rounds of training; same noise for each."""
        return Round(self.folder / "compare" / f"epoch{number}")

    def comparisons(self) -> dict[int, Round]:
        """Comparisons on disk, in order."""
        return {n: self.comparison(n) for n in _numbers(self.folder / "compare")}

    def drop_states(self, trained: range, keep: str) -> None:
        """Drop the states of trained rounds as `keep` says, and finish interrupted drops."""
        first, end = trained.start, trained.stop
        dropped = range(first, {"all": first, "last": end - 1, "none": end}[keep])
        for number, round_ in self.rounds().items():
            if number in dropped or not round_.states_kept:
                round_.drop_states()

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"


def manifest_of(
    round_: int,
    prompts: tuple[Prompt, ...],
    each: int,
    made_with: dict[str, Any],
    mean: Mean = (),
) -> dict[str, Any]:
    """What Round.write_manifest writes, as it is read back.

    mean: Sampler.mean_factors, from which x_0 can be told without the model.
    """
    return {
        "round": round_,
        "made_with": made_with,
        "prompts": [{"text": p.text, "items": [asdict(i) for i in p.items]} for p in prompts],
        "samples": [i for i in range(len(prompts)) for _ in range(each)],
        "mean": [[*factors] for factors in mean],
    }


def _checked(path: Path, check: Callable[[str, dict[str, Any]], None]) -> dict[str, Any]:
    """Read and check a JSON file of the round. Raises UserError."""
    value = read_json(path)
    check(str(path), value)
    return value


def _complete(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """The contents of a file, with what its "made_with" leaves unsaid."""
    return {**value, "made_with": {**USUAL.get(path.name, {}), **value.get("made_with", {})}}


def _ordered(scores: dict[int, float]) -> dict[str, float]:
    return {str(i): scores[i] for i in sorted(scores)}


def _numbers(folder: Path) -> list[int]:
    """k of every folder epoch<k>, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _EPOCH.match(p.name)))
