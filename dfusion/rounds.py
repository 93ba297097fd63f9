"""One round of D-Fusion up to training: sample, score, pair, fuse, score, adopt.

The state of a round is what is on disk. Every stage does what is missing and nothing twice, so the
answer to an interruption is to run the same command again. Processes share a round by index, with
no messages between them: each waits for the files it needs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfusion import pairing
from dfusion.errors import UserError
from dfusion.files import read_tensors, write_bytes, write_png, write_tensors
from dfusion.fusion import FusionPlan, Source, Target, fuse
from dfusion.progress import Progress, clock
from dfusion.prompts import Prompt
from dfusion.rewards import Reward, reward_name
from dfusion.sampling import Policy, Trajectory, sample
from dfusion.scoring import score_missing, scorer_alive
from dfusion.settings import Settings
from dfusion.store import Experiment, Round

SAY_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """Which of several processes this one is."""

    rank: int = 0
    size: int = 1

    def mine(self, count: int) -> range:
        """This process's share of 0 … count - 1."""
        return range(self.rank, count, self.size)


class RoundRunner:
    """Runs the rounds of one experiment.

    reward: scores in this process (flag eval.in_process); None waits for a scorer.
    """

    def __init__(
        self,
        settings: Settings,
        experiment: Experiment,
        prompts: tuple[Prompt, ...],
        plan: FusionPlan,
        mask_layers: frozenset[int],
        world: World,
        reward: Reward | None = None,
    ) -> None:
        self.settings, self.experiment, self.prompts = settings, experiment, prompts
        self.plan, self.mask_layers, self.world = plan, mask_layers, world
        self.reward, self.reward_name = reward, reward_name(settings.eval)

    def run(self, number: int, policy: Policy) -> Round:
        """Bring round `number` to its end; returns it."""
        round_, scores, pairs = self.prepare(number, policy)
        self._fuse(round_, policy, pairs, round_.sample_prompts())
        targets = self._scores(round_, "target_images", len(pairs))
        self._adopt(round_, pairs, scores, targets)
        return round_

    def prepare(
        self, number: int, policy: Policy
    ) -> tuple[Round, dict[int, float], tuple[pairing.Pair, ...]]:
        """The round up to fusion: its samples, their scores, its pairs."""
        round_ = self.experiment.round(number)
        self.say(f"Round {number}")
        self._plan(round_, number)
        prompts = round_.sample_prompts()
        self._sample(round_, policy, prompts)
        scores = self._scores(round_, "images", len(prompts))
        return round_, scores, self._pairs(round_, scores)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.world.rank == 0:
            print(text, flush=True)

    def _plan(self, round_: Round, number: int) -> None:
        each = self.settings.images_per_prompt
        if round_.manifest() is None and self.world.rank == 0:
            round_.write_manifest(number, self.settings.seed, self.prompts, each)
        self._wait(lambda: int(round_.manifest() is not None), 1, "the manifest")
        planned = round_.sample_prompts()
        if planned != [p for p in self.prompts for _ in range(each)]:
            raise UserError(
                f"{round_.folder}: was begun with other prompts, items or thresholds; go back to "
                "those, or choose another --config.exp_name"
            )

    def _sample(self, round_: Round, policy: Policy, prompts: list[Prompt]) -> None:
        def there(i: int) -> bool:
            return round_.image("images", i).exists() and round_.trajectory(i).exists()

        missing = [i for i in self.world.mine(len(prompts)) if not there(i)]
        progress = Progress("sampling", len(missing))
        for batch in _batches(missing, self.settings.sample.batch_size):
            trajectories = sample(policy, batch, [prompts[i] for i in batch], self.mask_layers)
            images = policy.model.decode(_last(trajectories).to(policy.model.device))
            for i, trajectory, image in zip(batch, trajectories, images, strict=True):
                write_tensors(
                    round_.trajectory(i),
                    {"latents": trajectory.latents, "maps": trajectory.maps},
                    {"seed": policy.seed, "round": policy.round, "index": i},
                )
                write_png(round_.image("images", i), image.numpy())
            if self.world.rank == 0:
                progress.advance(len(batch))
        count = len(prompts)
        self._wait(lambda: sum(map(there, range(count))), count, "images of other processes")

    def _scores(self, round_: Round, kind: str, count: int) -> dict[int, float]:
        if self.reward and self.world.rank == 0:
            batch = self.settings.eval.batch_size
            score_missing(round_, kind, self.reward, self.reward_name, batch)
        self._wait(
            lambda: len(round_.scores(kind, self.reward_name)),
            count,
            f"scores of {kind}",
            self._scorer_hint if self.reward is None else None,
        )
        return round_.scores(kind, self.reward_name)

    def _scorer_hint(self) -> str:
        folder = self.experiment.folder
        if scorer_alive(folder.parent, folder.name):
            return ""
        command = scorer_command(self.settings)
        return f"no scorer is running; type in another terminal:\n    {command}"

    def _pairs(self, round_: Round, scores: dict[int, float]) -> tuple[pairing.Pair, ...]:
        if round_.pairs() is None and self.world.rank == 0:
            texts = round_.texts_to_score("images")
            ranked = [scores[i] for i in range(len(texts))]
            round_.write_pairs(pairing.pair(texts, ranked, self.settings.pair.rule))
        self._wait(lambda: int(round_.pairs() is not None), 1, "the pairs")
        return round_.pairs() or ()

    def _fuse(
        self,
        round_: Round,
        policy: Policy,
        pairs: tuple[pairing.Pair, ...],
        prompts: list[Prompt],
    ) -> None:
        def there(p: int) -> bool:
            return round_.image("target_images", p).exists() and round_.target(p).exists()

        missing = [p for p in self.world.mine(len(pairs)) if not there(p)]
        progress = Progress("fusing", len(missing))
        for batch in _batches(missing, self.settings.fusion.batch_size):
            sources = [
                Source(
                    base_index=pairs[p].base,
                    prompt=prompts[pairs[p].base],
                    base=read_trajectory(round_, pairs[p].base),
                    reference=read_trajectory(round_, pairs[p].reference),
                )
                for p in batch
            ]
            targets = fuse(policy, self.plan, sources)
            images = policy.model.decode(_last(targets).to(policy.model.device))
            for p, source, target, image in zip(batch, sources, targets, images, strict=True):
                _write_target(round_, p, pairs[p], source, target, image.numpy())
            if self.world.rank == 0:
                progress.advance(len(batch))
        count = len(pairs)
        self._wait(lambda: sum(map(there, range(count))), count, "targets of other processes")

    def _adopt(
        self,
        round_: Round,
        pairs: tuple[pairing.Pair, ...],
        scores: dict[int, float],
        targets: dict[int, float],
    ) -> None:
        rows = []
        for p, pair in enumerate(pairs):
            base, reference, target = scores[pair.base], scores[pair.reference], targets[p]
            threshold = self.settings.pair.adoption_threshold
            kept = self.settings.pair.adoption == "all" or pairing.adopted(
                target, base, reference, threshold
            )
            rows.append({"base": base, "reference": reference, "target": target, "adopted": kept})
        if round_.adoption() is None and self.world.rank == 0:
            round_.write_adoption(rows)

    def _wait(
        self,
        done: Callable[[], int],
        total: int,
        what: str,
        hint: Callable[[], str] | None = None,
    ) -> None:
        """Poll until `done()` reaches `total`, saying now and then what is awaited."""
        started = time.monotonic()
        said = (-1, started - SAY_EVERY_SECONDS)
        while (have := done()) < total:
            now = time.monotonic()
            if now - said[1] >= SAY_EVERY_SECONDS:
                note = hint() if hint else ""
                self.say(
                    f"  waiting for {total - have} of {total} {what}, {clock(now - started)} so far"
                    + (f"; {note}" if note else "")
                )
                said = (have, now)
            time.sleep(min(0.5, self.settings.eval.poll_seconds))


def scorer_command(settings: Settings) -> str:
    """The command that scores this experiment, with every flag that is not the default."""
    given, default = settings.to_dict(), Settings().to_dict()
    flags = {"exp_name": settings.exp_name}
    if given["save_path"] != default["save_path"]:
        flags["save_path"] = given["save_path"]
    for key in ("reward", "model", "pretrained"):
        if given["eval"][key] != default["eval"][key]:
            flags[f"eval.{key}"] = given["eval"][key] or "''"
    return "python3 run_eval.py " + " ".join(f"--config.{k} {v}" for k, v in flags.items())


def _batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _last(results: list[Trajectory] | list[Target]) -> Tensor:
    return torch.stack([result.latents[-1] for result in results])


def read_trajectory(round_: Round, index: int) -> Trajectory:
    """A stored sample of a round."""
    tensors = read_tensors(round_.trajectory(index))
    return Trajectory(tensors["latents"], tensors["maps"])


def _write_target(
    round_: Round,
    p: int,
    pair: pairing.Pair,
    source: Source,
    target: Target,
    image: np.ndarray,
) -> None:
    for kind, index in (("base_images", pair.base), ("reference_images", pair.reference)):
        write_bytes(round_.image(kind, p), round_.image("images", index).read_bytes())
    write_png(round_.image("masks", p), mask_sheet(target.masks, source.reference.maps))
    write_tensors(
        round_.target(p),
        {"latents": target.latents, "masks": target.masks},
        {"base": pair.base, "reference": pair.reference},
    )
    write_png(round_.image("target_images", p), image)


def mask_sheet(masks: Tensor, maps: Tensor) -> np.ndarray:
    """A picture of masks and item maps over time, uint8 ((1 + I) gh, T gw).

    Left to right t = T … 1; on top the mask, below the maps, each item's over its own range.
    masks: (T, gh, gw) bool, maps: (T, I, gh, gw).
    """
    low = maps.float().amin((0, 2, 3), keepdim=True)
    high = maps.float().amax((0, 2, 3), keepdim=True)
    scaled = (maps.float() - low) / (high - low).clamp(min=1e-8)
    tiles = torch.cat([masks[:, None].float(), scaled], 1)  # (T, 1 + I, gh, gw)
    sheet = tiles.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    return (sheet * 255).round().to(torch.uint8).numpy()
