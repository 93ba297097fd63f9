"""Reusing the samples of another experiment: --config.samples_from.

A round is reused if its manifest names the same weights (LoRA included), noise (seed and round),
sampling settings and mask layers, and the same prompts, items and images per prompt. Scores are
taken too if the reward is the same, and targets if they were fused in the same way.

Thresholds may differ: they are applied to the stored item maps when targets are fused. Mask layers
may not differ: item maps come from sampling, and those of other layers are not stored.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import STORE_DTYPES
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import PAIRED, Experiment, Round, manifest_of
from dfusion.storage.files import appear, link, write_json

REMEDY = "name an experiment made with the same settings, or leave the flag out to sample anew"
_NOTES = {"mask layers": "; item maps of other layers are not stored"}


@dataclass(frozen=True)
class Lender:
    """The experiment whose samples are reused. only: the round that the flag names, if any."""

    folder: Path
    only: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Lender | None":
        """What --config.samples_from names: data/a0, or data/a0/epoch0. None if it is empty."""
        path = Path(settings.samples_from)
        if not settings.samples_from:
            return None
        if re.fullmatch(r"epoch\d+", path.name) and Experiment(path.parent).config_file.exists():
            return cls(path.parent, path.name)
        return cls(path)

    def round(self, place: str) -> Round:
        """The round to reuse for the one at `place`: "epoch0", or "compare/epoch0"."""
        return Round(self.folder / (self.only or place))

    def refuse(self, place: str, manifest: Mapping[str, Any]) -> None:
        """Raise UserError if the round at `place` does not match the planned `manifest`."""
        theirs, flag = self.round(place), f"--config.samples_from {self.folder}"
        found = theirs.manifest()
        if found is None:
            raise UserError(f"{flag}: no samples in {theirs.folder}; {REMEDY}")
        if differ := differences(found, manifest):
            raise UserError(
                f"{flag}: {theirs.folder} was made with other settings: {differ}; {REMEDY}"
            )
        if not theirs.states_kept:
            raise UserError(
                f"{flag}: {theirs.folder} no longer has its trajectories "
                f"(--config.keep_trajectories); {REMEDY}"
            )

    def lend(
        self,
        place: str,
        to: Round,
        manifest: dict[str, Any],
        scorers: Mapping[str, str],
        fused_with: dict[str, Any] | None,
    ) -> str:
        """Begin the round `to` with the files of the lender; returns a note of what was taken.

        The note is empty if nothing was taken. scorers: by kind, whose scores of the samples are
        taken. fused_with: only targets made in this way are taken; None for none. The folder of
        `to` appears atomically.
        """
        theirs = self.round(place)
        found = theirs.manifest()
        if found is None or differences(found, manifest):
            return ""
        count, reward = len(manifest["samples"]), scorers["images"]
        samples = [i for i in range(count) if theirs.image("images", i).exists()]
        files = [f for i in samples for f in (theirs.image("images", i), theirs.trajectory(i))]
        kinds = [kind for kind, name in scorers.items() if theirs.scored_by(kind) == name]
        files += [theirs.scores_file(kind) for kind in kinds]
        same = fused_with is not None and found["prompts"] == manifest["prompts"]
        targets = _targets(theirs, fused_with, reward) if same else []
        aside = to.folder.with_name(f".{to.folder.name}.tmp")
        for file in (*files, *targets):
            if file.exists():  # comparisons have no trajectories
                link(file, aside / file.relative_to(theirs.folder))
        write_json(aside / "manifest.json", manifest)
        appear(aside, to.folder)
        fused = sum(path.parent.name == "targets" for path in targets)
        taken = [f"{len(samples)} samples"]
        if "images" in kinds:
            taken.append("their scores")
        if fused:
            taken.append(f"{fused} targets")
        return f"took {', '.join(taken)} from {theirs.folder}"


def check(settings: Settings, prompts: tuple[Prompt, ...]) -> None:
    """Raise UserError, before a model loads, for samples that the first round cannot reuse.

    A round that has already begun reuses nothing.
    """
    lender, number = Lender.of(settings), settings.train.begin_epoch
    own = Experiment(Path(settings.save_path) / settings.exp_name)
    if lender is None or own.round(number).manifest() is not None:
        return
    flag = f"--config.samples_from {settings.samples_from}"
    if not Experiment(lender.folder).config_file.exists():
        raise UserError(f"{flag}: no experiment there; name one such as data/a0, or its epoch0")
    if lender.folder.resolve() == own.folder.resolve():
        raise UserError(f"{flag}: is the experiment itself; choose another --config.exp_name")
    sample = settings.sample
    known = {
        "seed": settings.seed,
        "round": number,
        "guidance": sample.guidance_scale if sample.cfg else None,
        "states": str(STORE_DTYPES[sample.store_dtype]).removeprefix("torch."),
        "maps": settings.mask.maps,
    }
    planned = manifest_of(number, prompts, settings.images_per_prompt, known)
    lender.refuse(f"epoch{number}", planned)


def sweep(folder: Path) -> None:
    """Delete the leftovers of a run that was killed while taking over a round."""
    for aside in [*folder.glob(".epoch*.tmp"), *folder.glob("compare/.epoch*.tmp")]:
        shutil.rmtree(aside)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """How the samples of `theirs` differ from those that `ours` plans; empty if they do not.

    Compares only the settings that `ours` names. Thresholds are ignored.
    """
    a, b = theirs["made_with"], ours["made_with"]
    found = [
        f"{key} ({a.get(key)} -> {value}{_NOTES.get(key, '')})"
        for key, value in b.items()
        if a.get(key) != value
    ]
    one, two = (_asked(manifest) for manifest in (theirs, ours))
    if len(one) != len(two):
        found.append(f"prompts ({len(one)} -> {len(two)})")
    elif one != two:
        old, new = next((x, y) for x, y in zip(one, two, strict=True) if x != y)
        found.append(f"prompts and items ({old} -> {new})")
    elif theirs["samples"] != ours["samples"]:
        each = (len(m["samples"]) // max(1, len(one)) for m in (theirs, ours))
        found.append(f"images per prompt ({next(each)} -> {next(each)})")
    return ", ".join(found)


def _asked(manifest: Mapping[str, Any]) -> list[str]:
    """Every prompt with its items, as text."""
    return [
        f"{p['text']}: {', '.join(str(item['name']) for item in p['items'])}"
        for p in manifest["prompts"]
    ]


def _targets(theirs: Round, fused_with: dict[str, Any] | None, reward: str) -> list[Path]:
    """Pairs and finished targets with their scores, if they were made in the same way."""
    pairs = theirs.pairs()
    if pairs is None or theirs.pairs_made_with() != fused_with:
        return []
    files = [theirs.folder / "pairs.json"]
    for p in range(len(pairs)):
        of_pair = [*(theirs.image(kind, p) for kind in PAIRED), theirs.target(p)]
        files += of_pair if all(path.exists() for path in of_pair) else []
    if theirs.scored_by("target_images") == reward:
        files.append(theirs.scores_file("target_images"))
    return files
