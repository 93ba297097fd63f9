"""DFusionTrainer: trains a pipeline's model on preferences, without files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfusion.api.samples import Preference, Sampling, common_sampling, score_of
from dfusion.errors import UserError
from dfusion.method.advantages import normalised, statistics
from dfusion.method.pairing import Pair
from dfusion.method.sampling import GivenNoise, Origin
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.check import check_targets, check_weights
from dfusion.settings.schema import SETTINGS, Train
from dfusion.training.learner import Learner
from dfusion.training.order import Step
from dfusion.training.pairs import TrainingPairs


class DFusionTrainer(Learner):
    """Trains LoRA, or all weights, by DPO, DDPO, DPOK, another loss or your own.

    settings: those of --config.train, by name (learning_rate, method, beta, eps, …; see
    docs/settings.md). seed: for the LoRA's initial values and the order of pairs. progress: whether
    to print progress. Raises UserError for any value that the flag would refuse.
    """

    def __init__(
        self, model: DiffusionModel, *, seed: int = 42, progress: bool = False, **settings: Any
    ) -> None:
        for name, value in settings.items():
            if f"train.{name}" not in SETTINGS:
                raise UserError(f"{name}: there is no such setting of --config.train")
            SETTINGS[f"train.{name}"].check(name, value)
        train = Train(**settings)
        check_weights("step_weights", train.step_weights)
        check_targets("lora_targets", train.lora_targets)
        say = print if progress else lambda text: None
        super().__init__(model, train, seed, say=say, shows=progress)
        self.rounds = 0
        self._scores: dict[str, list[float]] = {}

    def train_on(self, preferences: Sequence[Preference]) -> list[dict[str, Any]]:
        """Train for one round, on preferences sampled with the model in its current state.

        Returns the metrics of each optimiser step. DDPO and DPOK normalise a score by those of its
        prompt's bases and references in this and all earlier rounds, GRPO by those of this round.
        """
        if not preferences:
            return []
        sampling = common_sampling("preferences", (p.base for p in preferences))
        check_weights("step_weights", self.train.step_weights, sampling.num_steps)
        if self.objective.loss.grouped:
            self._scores.clear()
        for p in preferences:
            known = self._scores.setdefault(p.base.prompt.text, [])
            known += [p.reference_score, score_of(p.base)]
        pairs = _Preferences(preferences, self._scores)
        drawn = [p.base.drawn for p in preferences]
        policy = policy_of(self.model, sampling, drawn, seed=self.seed, round_=self.rounds)
        updates = self.updates(self.rounds, pairs, policy.sampler)
        updater = self.updater(policy, pairs)
        self.begin(updater, updates)
        rows = [self.update(self.rounds, inner, updater, update) for inner, update in updates]
        self.rounds += 1
        return rows

    def save(self, folder: str | Path) -> None:
        """Write the weights in diffusers' format, for pipe.load_lora_weights(folder)."""
        self.tuning.save(Path(folder))


class _Preferences(TrainingPairs):
    """Preferences, as pairs to train on. scores: of the plain samples, by prompt."""

    def __init__(self, preferences: Sequence[Preference], scores: dict[str, list[float]]) -> None:
        self.preferences = preferences
        self.pairs = [Pair(p.base.prompt.text, n, n) for n, p in enumerate(preferences)]
        self.fused = [p.fused for p in preferences]
        self._statistics = statistics(scores)

    def base_side(self, p: int) -> int:
        return 0 if self.preferences[p].base_preferred else 1

    def first_step(self, p: int) -> int:
        return self.preferences[p].first

    def begins(self, p: int) -> int:
        return self.preferences[p].first if self.preferences[p].kind == "renoise" else 0

    def walked_fused(self, step: Step) -> bool:
        preference = self.preferences[step.pair]
        fused = preference.fused and preference.kind == "attention"
        return fused and step.i >= preference.first

    def mask(self, step: Step) -> Tensor | None:  # (gh, gw)
        preference = self.preferences[step.pair]
        if preference.masks is None or preference.kind != "attention":
            return None
        return preference.masks[step.i]

    def advantages(self, p: int) -> list[float]:
        preference = self.preferences[p]
        about = self._statistics[preference.base.prompt.text]
        sides = [preference.score, score_of(preference.base)]
        return [
            normalised(s, *about) for s in (sides[::-1] if preference.base_preferred else sides)
        ]

    def states_of(self, step: Step, side: int) -> Tensor:  # (2, C, h, w)
        preference = self.preferences[step.pair]
        is_base = side == self.base_side(step.pair)
        latents = preference.base.latents if is_base else preference.latents
        return latents[step.i : step.i + 2]


def policy_of(
    model: DiffusionModel,
    sampling: Sampling,
    given: Sequence[tuple[Tensor, Tensor]],
    origins: Sequence[Origin] = (),
    seed: int = 0,
    round_: int = 0,
) -> GivenNoise:
    """The policy with these sampling arguments and the given noise of each sample.

    given: x_T (C, h, w) and step noises (T, C, h, w) of each. origins, seed, round_: what any
    further noise is drawn from.
    """
    return GivenNoise(
        model=model,
        sampler=model.sampler(sampling.num_steps, sampling.eta),
        guidance=sampling.guidance_scale,
        seed=seed,
        round=round_,
        negative=sampling.negative_prompt,
        maps=sampling.mask_maps,
        given=tuple(given),
        origins=tuple(origins),
    )
