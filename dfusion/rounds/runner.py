"""One round of D-Fusion up to training: sample, score, pair, fuse, score, adopt.

The state of a round is what is on disk. Every stage makes what is missing and nothing twice, so an
interrupted run continues when the same command is run again.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from PIL import Image
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method import pairing
from dfusion.method.fusion import FusionPlan, Source, Target
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Policy, Trajectory, sample
from dfusion.method.targets import make_targets
from dfusion.models.batching import Fit, unfinished
from dfusion.progress import Progress, Stopwatch
from dfusion.rewards.contract import Reward
from dfusion.rounds.acceptance import GO_BACK_OR_PAIR, check_pairs, check_samples
from dfusion.rounds.degenerate import equal_scores, odd_masks
from dfusion.rounds.pictures import decoded
from dfusion.rounds.scores import Scores
from dfusion.rounds.sharing import Lender
from dfusion.rounds.waiting import Waiting, World
from dfusion.settings.own import own
from dfusion.settings.schema import Settings
from dfusion.settings.steps import fused_indices
from dfusion.storage.experiment import (
    DROPPED,
    PAIRED,
    SCORED,
    WATCH,
    Experiment,
    Round,
    manifest_of,
)
from dfusion.storage.files import Writer, read_png, read_rows
from dfusion.storage.round_files import read_source, write_sample, write_target


class RoundRunner:
    """Runs the rounds of one experiment.

    reward, watch: score this process's share of the images (eval.in_process); None: wait for a
    scorer, if there is anything to wait for.
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
        watch: Reward | None = None,
    ) -> None:
        self.settings, self.experiment, self.prompts = settings, experiment, prompts
        self.plan, self.mask_layers, self.world = plan, mask_layers, world
        self.wait = Waiting(experiment, world, settings.eval.poll_seconds)
        self.say = self.wait.say
        self.stopwatch = Stopwatch()
        self.scores = Scores(settings, experiment, self.wait, self.stopwatch, reward, watch)
        name, rules = settings.pair.rule, pairing.RULES
        self.rule = rules.get(name) or own("pair.rule", name, rules)
        self.lender = Lender.of(settings)
        self._fits: dict[str, Fit] = {}

    def check(
        self, numbers: Sequence[int], policy: Callable[[int], Policy], known: int | None = None
    ) -> None:
        """Raise UserError for rounds on disk that were made with other settings.

        policy: gives the policy of a round. known: if given, weights are compared for this round
        only, as those of later rounds do not exist yet.
        """
        for number in numbers:
            round_, each = self.experiment.round(number), self.settings.images_per_prompt
            self._check_begun(round_, policy(number), each, known in (None, number))
            if round_.pairs() is not None:
                check_pairs(round_, self._fused_with())
        # Also those of finished rounds: curves of two scorers must not be joined.
        for round_ in self.experiment.rounds().values() if self.scores.watch_name else ():
            round_.scores(WATCH, self.scores.watch_name)

    def check_comparisons(self, first: int, policy: Policy) -> None:
        """Like `check`, for comparison images, if training continues with round `first`."""
        train = self.settings.train
        for number in (first, *range(first + 1, train.num_epochs + 1)):
            if train.compares_after(number):
                round_ = self.experiment.comparison(number)
                self._check_begun(round_, policy, train.compare_images, number == first)

    def _check_begun(self, round_: Round, policy: Policy, each: int, weights: bool) -> None:
        if round_.manifest() is not None:
            known = {k: v for k, v in self._made_with(policy).items() if weights or k != "weights"}
            check_samples(round_, known, self.prompts, each)
        for kind in SCORED:
            round_.scores(kind, self.scores.name)

    def run(self, number: int, policy: Policy) -> Round:
        """Complete round `number` up to adoption; returns it."""
        round_, scores, pairs = self.prepare(number, policy)
        with self.stopwatch.stage("fusing"):
            self._fuse(round_, policy, pairs, round_.sample_prompts())
            self._say_odd_masks(round_, len(pairs))
        targets = self.scores.of(round_, "target_images", len(pairs))
        self._adopt(round_, pairs, scores, targets)
        return round_

    def prepare(
        self, number: int, policy: Policy
    ) -> tuple[Round, dict[int, float], tuple[pairing.Pair, ...]]:
        """The round up to fusion: its samples, their scores, its pairs."""
        round_ = self.experiment.round(number)
        self.say(f"Round {number}")
        if self.world.rank == 0:  # it will be trained on again, so dropped states are made again
            (round_.folder / DROPPED).unlink(missing_ok=True)
        self._plan(round_, number, policy, self.settings.images_per_prompt)
        prompts = round_.sample_prompts()
        with self.stopwatch.stage("sampling"):
            self._sample(round_, policy, prompts)
        scores = self.scores.of(round_, "images", len(prompts))
        pairs = self._pairs(round_, scores)
        self._remark(equal_scores(round_.scores_by_text()))
        return round_, scores, pairs

    def compare(self, number: int, policy: Policy) -> dict[int, float]:
        """Sample and score comparison images of `policy`, after `number` rounds of training.

        The noise is the same for every `number`, because policy.round is a reserved number.
        """
        round_ = self.experiment.comparison(number)
        self.say(f"Comparison after {number} rounds of training")
        with self.stopwatch.stage("comparing"):
            self._plan(round_, number, policy, self.settings.train.compare_images)
            prompts = round_.sample_prompts()
            self._sample(round_, policy, prompts, keep=False)
            return self.scores.of(round_, "images", len(prompts))

    def watched(self, round_: Round) -> dict[int, float]:
        """The scores of a round's samples by the scorer that training never sees; waits for them.

        Empty if there is no such scorer.
        """
        if not self.scores.watch_name:
            return {}
        return self.scores.of(round_, WATCH, len(round_.sample_prompts()))

    def _remark(self, text: str) -> None:
        if text:
            self.say(f"  note: {text}")

    def _say_odd_masks(self, round_: Round, count: int) -> None:
        if self.world.rank == 0 and self.plan.masked and self.plan.kind == "attention":
            s = self.settings
            steps = sorted(fused_indices(s.fusion.steps, s.sample.num_steps))
            masks = [read_rows(round_.target(p), "masks", slice(None)) for p in range(count)]
            self._remark(odd_masks([mask[steps] for mask in masks]))

    def _plan(self, round_: Round, number: int, policy: Policy, each: int) -> None:
        made_with = self._made_with(policy)
        if round_.manifest() is None and self.world.rank == 0:
            mean = policy.sampler.mean_factors()
            manifest = manifest_of(number, self.prompts, each, made_with, mean)
            if not self._take_over(round_, manifest):
                round_.write_manifest(number, self.prompts, each, made_with, mean)
        self.wait.until(lambda: int(round_.manifest() is not None), 1, "the manifest")
        check_samples(round_, made_with, self.prompts, each)

    def _made_with(self, policy: Policy) -> dict[str, object]:
        """What a round's samples depend on, besides their prompts."""
        return {**policy.identity(), "mask layers": sorted(self.mask_layers)}

    def check_samples_from(self, number: int, policy: Policy) -> None:
        """Raise UserError if --config.samples_from has other samples than round `number` needs."""
        if self.lender and self.experiment.round(number).manifest() is None:
            each, made_with = self.settings.images_per_prompt, self._made_with(policy)
            manifest = manifest_of(number, self.prompts, each, made_with)
            self.lender.refuse(f"epoch{number}", manifest)

    def _take_over(self, round_: Round, manifest: dict[str, Any]) -> bool:
        """Begin a round with the samples of --config.samples_from, if these are what it needs."""
        if self.lender is None or any(round_.folder.glob("*")):
            return False
        place = round_.folder.relative_to(self.experiment.folder).as_posix()
        fuses = self.settings.train.pairs != "naive"
        fused_with = self._fused_with() if fuses else None
        names = {"images": self.scores.name, WATCH: self.scores.watch_name}
        said = self.lender.lend(place, round_, manifest, names, fused_with)
        if said:
            self.say(f"  {said}")
        return bool(said)

    def _sample(
        self, round_: Round, policy: Policy, prompts: list[Prompt], keep: bool = True
    ) -> None:
        """keep: store trajectories as well as images."""

        def there(i: int) -> bool:
            kept = not keep or round_.trajectory(i).exists()
            return kept and round_.image("images", i).exists()

        def make(batch: Sequence[int]) -> tuple[list[Trajectory], Tensor]:
            self.wait.check_still_there()
            made = sample(policy, batch, [prompts[i] for i in batch], self.mask_layers)
            return made, decoded(policy, made, [f"sample {i}" for i in batch])

        size = self.settings.sample.images_per_call or self.settings.sample.batch_size
        fit = self._fit("sample.images_per_call", size, policy)
        batches = unfinished(self.world.mine(len(prompts)), fit.cut, there)
        progress = Progress("sampling", sum(map(len, batches)))
        with Writer() as writer:
            parts = chain.from_iterable(fit.over(batch, make) for batch in batches)
            for batch, (trajectories, images) in parts:
                for i, trajectory, image in zip(batch, trajectories, images, strict=True):
                    states = trajectory if keep else None
                    writer.put(write_sample, round_, i, states, image.numpy())
                writer.next_batch()
                if self.world.rank == 0:
                    progress.advance(len(batch))
        count = len(prompts)
        self.wait.until(lambda: sum(map(there, range(count))), count, "images of other processes")

    def _fused_with(self) -> dict[str, object]:
        """What a round's pairs and targets depend on, besides its samples."""
        fusion = self.settings.fusion
        return {
            "reward": self.scores.name,
            "rule": self.settings.pair.rule,
            "fusion layers": sorted(self.plan.layers),
            "fusion steps": fusion.steps,
            "fusion parts": sorted(self.plan.parts),
            "fusion text": fusion.text,
            "masked": fusion.masked,
            "merge": self.plan.merge,
            "mask place": self.plan.place,
            "target kind": self.plan.kind,
        }

    def _pairs(self, round_: Round, scores: dict[int, float]) -> tuple[pairing.Pair, ...]:
        made_with = self._fused_with()
        texts = round_.texts_to_score("images")
        listed = [scores[i] for i in range(len(texts))]

        def image(i: int) -> Image.Image:
            return Image.fromarray(read_png(round_.image("images", i)))

        pairs = pairing.pair(texts, listed, self.rule, image)
        if round_.pairs() is None and self.world.rank == 0:
            round_.write_pairs(pairs, made_with)
        self.wait.until(lambda: int(round_.pairs() is not None), 1, "the pairs")
        check_pairs(round_, made_with)
        if round_.pairs() != pairs:
            raise UserError(
                f"{round_.folder}/pairs.json: the scores have changed since; {GO_BACK_OR_PAIR}"
            )
        return pairs

    def _fuse(
        self,
        round_: Round,
        policy: Policy,
        pairs: tuple[pairing.Pair, ...],
        prompts: list[Prompt],
    ) -> None:
        def there(p: int) -> bool:
            pictures = all(round_.image(kind, p).exists() for kind in PAIRED)
            return pictures and round_.target(p).exists()

        def make(batch: Sequence[int]) -> tuple[list[Source], list[Target], Tensor]:
            self.wait.check_still_there()
            sources = [read_source(round_, pairs[p], prompts) for p in batch]
            made = make_targets(policy, self.plan, sources)
            return sources, made, decoded(policy, made, [f"target {p}" for p in batch])

        fit = self._fit("fusion.batch_size", self.settings.fusion.batch_size, policy)
        batches = unfinished(self.world.mine(len(pairs)), fit.cut, there)
        progress = Progress("fusing", sum(map(len, batches)))
        with Writer() as writer:
            parts = chain.from_iterable(fit.over(batch, make) for batch in batches)
            for batch, (sources, targets, images) in parts:
                for p, source, target, image in zip(batch, sources, targets, images, strict=True):
                    args = round_, p, pairs[p], source, target, image.numpy()
                    writer.put(write_target, *args)
                writer.next_batch()
                if self.world.rank == 0:
                    progress.advance(len(batch))
        count = len(pairs)
        self.wait.until(lambda: sum(map(there, range(count))), count, "targets of other processes")

    def _adopt(
        self,
        round_: Round,
        pairs: tuple[pairing.Pair, ...],
        scores: dict[int, float],
        targets: dict[int, float],
    ) -> None:
        rows = []
        threshold = self.settings.pair.adoption_threshold
        for p, pair in enumerate(pairs):
            base, reference, target = scores[pair.base], scores[pair.reference], targets[p]
            kept = self.settings.pair.adoption == "all" or pairing.adopted(
                target, base, reference, threshold
            )
            rows.append({"base": base, "reference": reference, "target": target, "adopted": kept})
        if round_.adoption() != rows and self.world.rank == 0:
            rule = {"rule": self.settings.pair.adoption, "threshold": threshold}
            round_.write_adoption(rows, rule)
        # Every process trains on the adopted targets: none may read an outdated file.
        self.wait.until(lambda: int(round_.adoption() == rows), 1, "the adoption")

    def _fit(self, flag: str, asked: int | str, policy: Policy) -> Fit:
        """The size of a UNet call; a size that fitted is remembered for later rounds."""
        if flag not in self._fits:
            self._fits[flag] = Fit(flag, asked, policy.model.device, say=self.say)
        return self._fits[flag]
