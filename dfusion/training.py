"""Training round after round: sample and fuse with the policy so far, update it (Algorithm 1)."""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfusion import metrics, optimiser, report, tracking
from dfusion.checkpoints import Checkpoints
from dfusion.contact_sheet import contact_sheet
from dfusion.errors import UserError
from dfusion.files import write_tensors
from dfusion.fit import guess
from dfusion.inputs import check_training
from dfusion.inversion import invert
from dfusion.model_card import model_card
from dfusion.objective import Objective
from dfusion.progress import Progress
from dfusion.rounds import unfinished
from dfusion.runs import FREE, Session, begun, load_session
from dfusion.sampling import Policy
from dfusion.settings import Settings, flat
from dfusion.steps import first_fused, fused_indices
from dfusion.transitions import Step, TrainingRound
from dfusion.tuning import tune
from dfusion.updates import Updater, sampling_gap

# How far a log-prob may be from the one it was sampled with, in nats per dimension.
GAP = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
CALMER = "try --config.mixed_precision no or a lower --config.train.learning_rate"
COMPARED = 1_000_000  # stands in for a round's number in the noise of comparisons


class Trainer:
    """The policy, its optimiser, and the loop over rounds of one experiment."""

    def __init__(self, session: Session) -> None:
        self.session, self.settings = session, session.settings
        train, model = session.settings.train, session.model
        if train.tune == "full" and model.dtype != torch.float32:
            raise UserError("--config.train.tune full: needs --config.mixed_precision no")
        self.objective = Objective.of(train)
        self.accelerator = tracking.accelerator(self.settings, cpu=model.device.type == "cpu")
        self.tuning = tune(
            model.unet, train, session.settings.seed, keep_initial=self.objective.needs_initial
        )
        if train.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        self.optimiser = optimiser.make(self.tuning.parameters, train, model.device)
        # Under DDP only a call of the wrapped module exchanges gradients.
        self.network: nn.Module = self.accelerator.prepare_model(model.unet, device_placement=False)
        self.checkpoints = Checkpoints(session.experiment.folder / "checkpoints")

    @property
    def boost(self) -> float:
        """What losses are multiplied by on the way back through the network."""
        return 1024.0 if self.session.model.dtype == torch.float16 else 1.0

    @property
    def rank(self) -> int:
        return self.session.runner.world.rank

    def run(self) -> None:
        """Train on every round up to the last one asked for, from the latest checkpoint on."""
        metrics.read(self.session.experiment.folder / "metrics.jsonl")  # raises for damage
        first = self.resume()
        numbers = range(first, self.settings.train.num_epochs)
        self.session.runner.check(numbers, self.session.policy, known=first)
        self.session.runner.check_comparisons(first, self.session.policy(COMPARED))
        with begun(self.session, numbers):
            tracking.start(self.accelerator, self.settings)
            self._tidy()
            self.compare(first)  # also where only the last comparison is unfinished
            for number in numbers:
                self.train_round(number, self.sampled(number))
                self.compare(number + 1)
                self._report()
            self._report()
        if self.settings.tracker != "none":
            self.accelerator.end_training()

    def _tidy(self) -> None:
        """Finish what a kill left undone after the latest checkpoint."""
        if self.rank == 0 and (done := self.checkpoints.latest()) is not None:
            self.checkpoints.tidy(done, self.settings.train.num_checkpoint_limit)
            self._drop_states(done)

    def _report(self) -> None:
        if self.rank == 0:
            report.write(self.session.experiment.folder)

    def resume(self) -> int:
        """Restore the policy that this run goes on from; returns the next round."""
        done, asked = self.checkpoints.latest(), self.settings.resume_from
        given = None if asked in ("", "latest") else Path(asked).resolve()
        if done is None:
            if given is not None:
                self.checkpoints.load(given, self.tuning, self.optimiser)
                self.say(f"Beginning with the policy in {given}")
            return self.settings.train.begin_epoch
        own = self.checkpoints.path(done).resolve()
        if given is not None and given.parent == own.parent and given != own:
            raise UserError(
                f"--config.resume_from {asked}: {own.name} is later; remove the later checkpoints "
                "and epoch folders, or choose another --config.exp_name"
            )
        self.checkpoints.load(own, self.tuning, self.optimiser)
        self.say(f"Going on after round {done}")
        return done + 1

    def sampled(self, number: int) -> Policy:
        """Bring round `number` to where it can be trained on; returns the policy that made it."""
        policy = self.session.policy(number)
        if self.settings.train.pairs == "naive":
            self.session.runner.prepare(number, policy)
        else:
            self.session.runner.run(number, policy)
        if self.settings.train.pairs == "inversion":
            with self.session.runner.stopwatch.stage("inverting"):
                self._invert(number, policy)
        return policy

    def compare(self, number: int) -> None:
        """Show the policy after `number` rounds, if this is a time for it."""
        if self.settings.train.compares_after(number):
            scores = self.session.runner.compare(number, self.session.policy(COMPARED))
            self.say(f"  mean reward, same noise each time: {np.mean(list(scores.values())):.4f}")

    def train_round(self, number: int, policy: Policy) -> None:
        """Inner epochs over the pairs of a round, then metrics and a checkpoint."""
        with self.session.runner.stopwatch.stage("training"):
            data = self.data(number)
            share = list(self.session.runner.world.mine(len(data.pairs)))
            data.check(share)
            rows = self._updates(number, policy, data, share)
        self._finish(number, data, rows)

    def data(self, number: int) -> TrainingRound:
        """The pairs of a round; where targets part from their bases, the step is known."""
        first = first_fused(self.settings.fusion.steps, len(self.session.ddim))
        return TrainingRound(
            self.session.experiment, number, self.settings.train.pairs, fused_from=first
        )

    def order(
        self, number: int, inner: int, data: TrainingRound, share: list[int]
    ) -> list[list[Step]]:
        """This process's steps of each optimiser step: pairs shuffled, and each pair's steps.

        Steps without any gradient are left out (Algorithm 1 has no others).
        """
        rng = np.random.default_rng((self.settings.seed, number, inner, self.rank))
        groups = []
        pairs = rng.permutation(share)
        for group in np.array_split(pairs, self.settings.train.updates_per_inner_epoch):
            order = []
            for p in map(int, group):
                begin = data.first_step(p) if self.objective.pairwise else 0
                steps = [i for i in range(begin, len(self.session.ddim)) if self._weighs(i)]
                order += [Step(p, int(i)) for i in rng.permutation(steps)]
            groups.append(order)
        return groups

    def say(self, text: str) -> None:
        self.session.runner.say(text)

    def _weighs(self, i: int) -> bool:
        weights = self.objective.step_weights
        return not weights or weights[i] > 0

    def _updates(
        self, number: int, policy: Policy, data: TrainingRound, share: list[int]
    ) -> list[dict[str, Any]]:
        """All optimiser steps of a round; returns their metrics. Goes on where it was stopped."""
        train, world = self.settings.train, self.session.runner.world
        updater = self.updater(policy, data)
        about = self._about(number, data)
        state = self.checkpoints.state_within(about)
        if state is None:
            self._check_sampler(policy, data, share)
            rows = []
        else:
            self.checkpoints.load(self.checkpoints.within, self.tuning, self.optimiser)
            updater.old, updater.first = self.checkpoints.load_known(world.rank)
            rows = state["rows"]
            self.say(f"  going on after {len(rows)} optimiser steps of this round")
        total = train.num_inner_epochs * train.updates_per_inner_epoch
        for inner in range(train.num_inner_epochs):
            groups = self.order(number, inner, data, share)
            if inner == 0 and not rows:
                updater.remember([step for group in groups[1:] for step in group])
            for u, steps in enumerate(groups):
                if inner * train.updates_per_inner_epoch + u < len(rows):
                    continue
                pairs = _pairs_in_update(len(data.pairs), world.size, len(groups), u)
                rows.append(self.update(number, inner, updater, steps, pairs))
                if len(rows) < total:
                    self._save_within(about, updater, rows)
        return rows

    def updater(self, policy: Policy, data: TrainingRound) -> Updater:
        """What walks over the steps of a round."""
        return Updater(
            policy=policy,
            network=self.network,
            data=data,
            objective=self.objective,
            initial=self.tuning.initial,
            batch_size=guess(self.settings.train.batch_size),
            boost=self.boost,
            sync=self._sync,
            advance=lambda count: None,
        )

    def update(
        self, number: int, inner: int, updater: Updater, steps: Sequence[Step], pairs: int
    ) -> dict[str, Any]:
        """One optimiser step; returns its metrics. pairs: in this step, of all processes."""
        if self.rank == 0:
            updater.advance = Progress(f"training, inner epoch {inner}", len(steps)).advance
        self.optimiser.zero_grad(set_to_none=True)
        where = f"round {number}, training, inner epoch {inner}"
        if not steps:  # other processes would wait for this one's gradient
            raise UserError(
                f"{where}: --config.train.step_weights leaves a process no step of its pairs; give "
                "more of the fused steps a weight"
            )
        tally = updater.backward(steps)
        broken = updater.broken()
        if broken:
            raise UserError(f"{where}, {broken}; {self._intact()}; {CALMER}")
        # DDP averages over processes; the loss is the mean over the pairs and all their steps.
        scale = self.accelerator.num_processes / (pairs * len(updater.policy.ddim))
        for parameter in self.tuning.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale / self.boost)
        limit = self.settings.train.max_grad_norm
        norm = float(nn.utils.clip_grad_norm_(self.tuning.parameters, limit))
        if norm == 0:
            raise UserError(
                f"{where}: the gradient's norm is 0, so that no pair has anything to teach (equal "
                f"scores only?); {self._intact()}; try other prompts, or more images of each"
            )
        if not math.isfinite(norm):
            raise UserError(f"{where}: the gradient's norm is {norm}; {self._intact()}; {CALMER}")
        self.optimiser.step()
        row = {
            "kind": "update",
            "round": number,
            "inner_epoch": inner,
            "grad_norm": norm,
            "learning_rate": self.settings.train.learning_rate,
            **tally.over_processes(self._sum).figures(),
        }
        self.say(
            f"  inner epoch {inner}: loss {row['loss']:.4f}, ratio {row['ratio']:.4f}, "
            f"gradient norm {norm:.2e}"
        )
        return row

    def _intact(self) -> str:
        done = self.checkpoints.latest()
        return "no checkpoint yet" if done is None else f"checkpoint epoch{done} is intact"

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(values, reduction="sum")

    def _sync(self, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)

    def _check_sampler(self, policy: Policy, data: TrainingRound, share: list[int]) -> None:
        """Stop if the network that trains is not the one that sampled (ratio = 1)."""
        last = len(policy.ddim) - 1
        looked_at = enumerate((last, 0, last // 2, min(1, last)))  # t = 1 deviates most
        steps = list(dict.fromkeys(Step(share[n % len(share)], i) for n, i in looked_at))
        gap = sampling_gap(policy, self.network, data, steps)
        limit = max(GAP[self.session.model.dtype], GAP[policy.store_dtype])
        if not gap <= limit:
            raise UserError(
                f"the policy that trains is not the one that sampled this round: log-probs differ "
                f"by {gap:.2g} (at most {limit:.2g}); was the round sampled with another LoRA, "
                "precision, guidance or eta? Sample it again under another --config.exp_name"
            )

    def _invert(self, number: int, policy: Policy) -> None:
        """Write the inverted trajectories of this process's adopted targets."""
        data = self.data(number)
        share = self.session.runner.world.mine(len(data.pairs))
        adopted = [p for p in share if data.fused[p]]
        size = self.settings.sample.batch_size
        batches = unfinished(adopted, size, lambda p: data.round.inversion(p).exists())
        progress = Progress("inverting", sum(map(len, batches)))
        for batch in batches:
            x0 = torch.stack([data.final_state(p) for p in batch])
            states = invert(policy, x0, [data.pairs[p].prompt for p in batch])
            for p, latents in zip(batch, states, strict=True):
                if not latents.isfinite().all():
                    raise UserError(f"round {number}, inverting pair {p}: NaN or Inf; {CALMER}")
                write_tensors(data.round.inversion(p), {"latents": latents}, {"pair": p})
            if self.rank == 0:
                progress.advance(len(batch))

    def _about(self, number: int, data: TrainingRound) -> dict[str, Any]:
        """What a checkpoint within a round may be resumed for: the same pairs and settings."""
        settings = {k: v for k, v in flat(self.settings.to_dict()).items() if k not in FREE}
        content = json.dumps([data.content(), settings], sort_keys=True)
        return {
            "round": number,
            "processes": self.session.runner.world.size,
            "trained_on": hashlib.sha256(content.encode()).hexdigest(),
        }

    def _save_within(
        self, about: dict[str, Any], updater: Updater, rows: list[dict[str, Any]]
    ) -> None:
        """A checkpoint between two optimiser steps of a round."""
        if self.rank == 0:
            self.checkpoints.forget_within()
        self.accelerator.wait_for_everyone()
        self.checkpoints.save_known(self.rank, updater.old, updater.first)
        self.accelerator.wait_for_everyone()
        if self.rank == 0:
            card = model_card(self.settings, about["round"], [])
            state = {**about, "rows": rows}
            self.checkpoints.save_within(self.tuning, self.optimiser, state, card)

    def _finish(self, number: int, data: TrainingRound, rows: list[dict[str, Any]]) -> None:
        """Metrics and checkpoint, by one process."""
        if self.rank == 0:
            folder = self.session.experiment.folder
            indices = fused_indices(self.settings.fusion.steps, len(self.session.ddim))
            row = metrics.round_row(number, data, self.session.runner.stopwatch.take(), indices)
            metrics.append(folder / "metrics.jsonl", number, [*rows, row])
            scores = [*self._history(number), row["reward_mean"]]
            saved = self.checkpoints.save(
                number,
                self.tuning,
                self.optimiser,
                {"reward_means": scores},
                model_card(self.settings, number, scores),
                self.settings.train.num_checkpoint_limit,
            )
            self._track(number, rows, row)
            self.say(f"  trained on {len(data.pairs)} pairs; checkpoint in {saved}")
            self._drop_states(number)
        self.accelerator.wait_for_everyone()

    def _drop_states(self, done: int) -> None:
        """Delete what --config.keep_trajectories lets go of rounds up to `done`, all trained on."""
        trained = range(self.settings.train.begin_epoch, done + 1)
        self.session.experiment.drop_states(trained, self.settings.keep_trajectories)

    def _history(self, number: int) -> list[float]:
        """Mean rewards of the rounds before."""
        rounds = self.session.experiment.rounds()
        means = [r.scores("images").values() for k, r in rounds.items() if k < number]
        return [float(np.mean(list(values))) for values in means if values]

    def _track(self, number: int, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        if self.settings.tracker == "none":
            return
        each = self.settings.train.num_inner_epochs * self.settings.train.updates_per_inner_epoch
        for n, update in enumerate(rows):
            tracking.log(self.accelerator, update, number * each + n)
        last = (number + 1) * each - 1
        tracking.log(self.accelerator, row, last)
        folder = self.session.experiment.folder
        sheet = contact_sheet(folder, report.collect(folder))
        tracking.log_images(self.accelerator, "pairs", sheet, last)


def _pairs_in_update(pairs: int, processes: int, updates: int, u: int) -> int:
    """How many pairs all processes together have in optimiser step u of an inner epoch."""
    shares = [len(range(rank, pairs, processes)) for rank in range(processes)]
    return sum(len(np.array_split(np.arange(share), updates)[u]) for share in shares)


def train_rounds(settings: Settings) -> Path:
    """Sample, score, fuse and train, round after round; returns the experiment's folder.

    Raises UserError for bad input, before a model loads where that is possible.
    """
    trainer = Trainer(load_session(settings, check_training(settings)))
    trainer.run()
    folder = trainer.session.experiment.folder
    trainer.say(
        f"Checkpoints are in {folder / 'checkpoints'}, metrics in {folder}/metrics.jsonl\n"
        f"look at {folder / 'index.html'}"
    )
    return folder
