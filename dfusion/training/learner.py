"""The trained part of a policy, its optimiser, and optimiser steps on pairs from any source."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfusion.errors import UserError
from dfusion.method.sampler import Sampler
from dfusion.method.sampling import Policy
from dfusion.models.batching import Fit
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.trainable import tune
from dfusion.progress import Progress
from dfusion.settings.schema import Train
from dfusion.training import optimiser
from dfusion.training.gradients import Updater, sampling_gap, transitions
from dfusion.training.loss_scale import LossScale
from dfusion.training.objective import objective_of
from dfusion.training.optimiser_step import Stepper
from dfusion.training.order import Step, Update, updates_of_pass
from dfusion.training.pairs import TrainingPairs

# How far a log-prob may be from the one it was sampled with, in nats per dimension.
GAP = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Learner:
    """Trains a model on pairs, as the settings in `train` say.

    shows: whether to show progress. processes: their number. rank: this process's. add_up: returns
    a tensor's sum over all processes.
    """

    def __init__(
        self,
        model: DiffusionModel,
        train: Train,
        seed: int,
        say: Callable[[str], None] = print,
        shows: bool = True,
        processes: int = 1,
        rank: int = 0,
        add_up: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        if train.tune == "full" and model.dtype != torch.float32:
            raise UserError("--config.train.tune full: needs --config.mixed_precision no")
        self.model, self.train, self.seed, self.say = model, train, seed, say
        self.processes, self.rank, self.shows = processes, rank, shows and rank == 0
        self.objective = objective_of(train)
        self.tuning = tune(model, train, seed, keep_initial=self.objective.needs_initial)
        if train.gradient_checkpointing:
            model.network.enable_gradient_checkpointing()
        self.optimiser = optimiser.make(self.tuning.parameters, train, model.device)
        self.network: nn.Module = model.network
        self.fit = Fit("train.batch_size", train.batch_size, model.device)
        self.stepper = Stepper(
            parameters=self.tuning.parameters,
            optimiser=self.optimiser,
            scale=LossScale(model.dtype),
            max_norm=train.max_grad_norm,
            processes=processes,
            add_up=add_up,
            say=say,
        )

    @property
    def loss_scale(self) -> float:
        """The factor on the losses in the backward pass."""
        return self.stepper.scale.value

    def order(self, number: int, inner: int, data: TrainingPairs, sampler: Sampler) -> list[Update]:
        """The optimiser steps of one pass over a round's pairs, with this process's share of each.

        Denoising steps without noise or any gradient are left out; Algorithm 1 has no such steps.
        """
        updates = self.train.updates_per_inner_epoch
        if len(data.pairs) < updates:
            raise UserError(
                f"--config.train.updates_per_inner_epoch {updates}: more optimiser steps than "
                f"pairs, which are {len(data.pairs)}"
            )

        forward = self.objective.forward  # needs no noise in the step
        trained = [i for i, noisy in enumerate(sampler.trainable.tolist()) if noisy or forward]

        def steps_of(p: int) -> list[int]:
            if forward:
                begin = 0
            else:
                begin = data.first_step(p) if self.objective.pairwise else data.begins(p)
            weighs = self.objective.step_weights.weighs
            return [i for i in trained if i >= begin and weighs(i, len(sampler))]

        return updates_of_pass(
            (self.seed, number, inner),
            len(data.pairs),
            updates,
            steps_of,
            self.rank,
            self.processes,
            self.train.timestep_fraction,
        )

    def updates(
        self, number: int, data: TrainingPairs, sampler: Sampler
    ) -> list[tuple[int, Update]]:
        """All optimiser steps of a round, each with its inner epoch."""
        passes = range(self.train.num_inner_epochs)
        return [(k, update) for k in passes for update in self.order(number, k, data, sampler)]

    def updater(
        self, policy: Policy, data: TrainingPairs, pairs: Sequence[int] | None = None
    ) -> Updater:
        """The `Updater` of a round. pairs: those that it will train on; None for all."""
        return Updater(
            policy=policy,
            network=self.network,
            data=data,
            objective=self.objective,
            initial=self.tuning.initial,
            fit=self.fit,
            zero=self.optimiser.zero_grad,
            pairs=range(len(data.pairs)) if pairs is None else pairs,
        )

    def begin(self, updater: Updater, updates: Sequence[tuple[int, Update]]) -> None:
        """Prepare a round before its first optimiser step, while the policy is still theta_old.

        Stores theta_old's log-probs for later optimiser steps; those for the first one come from
        its own forward pass. Raises UserError if another network sampled.
        """
        steps = list(dict.fromkeys(step for _, update in updates for step in update.steps))
        if steps:  # a process may have none
            pairs = sorted({step.pair for step in steps})
            self.check_sampler(updater.policy, updater.data, pairs)
        first = set(updates[0][1].steps)
        updater.remember([step for step in steps if step not in first])

    def update(self, number: int, inner: int, updater: Updater, update: Update) -> dict[str, Any]:
        """One optimiser step; returns its metrics. Raises NotSoundError for NaN or Inf."""
        if self.shows:
            name = f"training, inner epoch {inner}"
            updater.watch = lambda total: Progress(name, total).advance
        norm, tally = self.stepper.step(updater, update)
        scale = self.stepper.scale
        row = {
            "kind": "update",
            "round": number,
            "inner_epoch": inner,
            "grad_norm": norm,
            "skipped": norm == 0,
            "learning_rate": self.train.learning_rate,
            **({"loss_scale": scale.value} if scale.adapts else {}),
            **tally.figures(),
        }
        self.say(
            f"  inner epoch {inner}: loss {row['loss']:.4f}, ratio {row['ratio']:.4f}, "
            + (f"gradient norm {norm:.2e}" if norm else "no gradient: the step is skipped")
        )
        return row

    def check_sampler(self, policy: Policy, data: TrainingPairs, share: Sequence[int]) -> None:
        """Raise UserError if the network that trains is not the one that sampled (ratio = 1)."""
        gap = sampling_gap(policy, self.network, data, _probes(policy.sampler, share))
        limit = max(GAP[self.model.dtype], GAP[policy.store_dtype])
        if not gap <= limit:
            raise UserError(
                f"the policy that trains is not the one that sampled this round: log-probs differ "
                f"by {gap:.2g} (at most {limit:.2g}); was the round sampled with another LoRA, "
                "precision, guidance or eta? Sample it again under another --config.exp_name"
            )

    @torch.no_grad()
    def noise_norm(self, policy: Policy, data: TrainingPairs) -> float | None:
        """Norm of the predicted noise, over the initial model's, at a few steps of a few pairs.

        It rises before images go wrong. None where the initial model is not kept.
        """
        if not self.tuning.keeps_initial:
            return None
        batch = data.read(_probes(policy.sampler, range(len(data.pairs))))
        now = transitions(policy, self.network, batch).output.flatten(1).norm(dim=1)
        with self.tuning.initial() as network:
            before = transitions(policy, network, batch).output.flatten(1).norm(dim=1)
        return float((now / before).mean())


def _probes(sampler: Sampler, pairs: Sequence[int]) -> list[Step]:
    """Up to four denoising steps to look at, of different pairs; the last one deviates most."""
    noisy = [i for i, trained in enumerate(sampler.trainable.tolist()) if trained]
    last = len(noisy) - 1
    looked_at = enumerate((last, 0, last // 2, min(1, last)))
    return list(dict.fromkeys(Step(pairs[n % len(pairs)], noisy[k]) for n, k in looked_at))
