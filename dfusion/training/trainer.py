"""Training round after round: sample and fuse with the policy so far, update it (Algorithm 1)."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfusion.errors import UserError
from dfusion.method.inversion import invert
from dfusion.method.sampling import Policy
from dfusion.models.batching import Fit
from dfusion.models.trainable import tune
from dfusion.progress import Progress
from dfusion.report import page
from dfusion.report.contact_sheet import contact_sheet
from dfusion.rounds.runner import unfinished
from dfusion.rounds.session import Session, begun, load_session
from dfusion.settings.check import check_training
from dfusion.settings.schema import FREE, Settings, flat
from dfusion.settings.steps import first_fused, fused_indices
from dfusion.storage.files import write_tensors
from dfusion.training import metrics, optimiser, tracking
from dfusion.training.checkpoints import Checkpoints
from dfusion.training.gradients import Updater, sampling_gap
from dfusion.training.loss_scale import LossScale
from dfusion.training.model_card import model_card
from dfusion.training.objective import objective_of
from dfusion.training.optimiser_step import NotSoundError, Stepper
from dfusion.training.order import Step, Update, updates_of_pass
from dfusion.training.pairs import TrainingRound

# How far a log-prob may be from the one it was sampled with, in nats per dimension.
GAP = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
CALMER = "try --config.mixed_precision no or a lower --config.train.learning_rate"
LAYOUT = 2  # of checkpoints within a round: rises when older ones can no longer be gone on from
COMPARED = 1_000_000  # stands in for a round's number in the noise of comparisons


class Trainer:
    """The policy, its optimiser, and the loop over rounds of one experiment."""

    def __init__(self, session: Session) -> None:
        self.session, self.settings = session, session.settings
        train, model = session.settings.train, session.model
        if train.tune == "full" and model.dtype != torch.float32:
            raise UserError("--config.train.tune full: needs --config.mixed_precision no")
        self.objective = objective_of(train)
        self.accelerator = tracking.accelerator(self.settings, cpu=model.device.type == "cpu")
        self.tuning = tune(
            model.unet, train, session.settings.seed, keep_initial=self.objective.needs_initial
        )
        if train.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        self.optimiser = optimiser.make(self.tuning.parameters, train, model.device)
        self.network: nn.Module = model.unet
        self.fit = Fit("train.batch_size", train.batch_size, model.device)
        self.stepper = Stepper(
            parameters=self.tuning.parameters,
            optimiser=self.optimiser,
            scale=LossScale(model.dtype),
            max_norm=train.max_grad_norm,
            processes=self.accelerator.num_processes,
            add_up=self._sum,
            say=self.say,
        )
        self.checkpoints = Checkpoints(session.experiment.folder / "checkpoints")

    @property
    def boost(self) -> float:
        """What losses are multiplied by on the way back through the network."""
        return self.stepper.scale.value

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
            page.write(self.session.experiment.folder)

    def resume(self) -> int:
        """Restore the policy that this run goes on from; returns the next round."""
        done, asked = self.checkpoints.latest(), self.settings.resume_from
        given = None if asked in ("", "latest") else Path(asked).resolve()
        if done is None:
            if given is not None:
                self._load(given)
                self.say(f"Beginning with the policy in {given}")
            return self.settings.train.begin_epoch
        own = self.checkpoints.path(done).resolve()
        if given is not None and given.parent == own.parent and given != own:
            raise UserError(
                f"--config.resume_from {asked}: {own.name} is later; remove the later checkpoints "
                "and epoch folders, or choose another --config.exp_name"
            )
        self._load(own)
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
            self.accelerator.wait_for_everyone()  # inverted states may be another process's
            rows = self._updates(number, policy, data)
        if all(row["skipped"] for row in rows):
            raise UserError(
                f"round {number}, training: the gradient's norm is 0, so that no pair has anything "
                f"to teach (equal scores only?); {self._intact()}; try other prompts, more images "
                "of each, or other --config.train.step_weights"
            )
        self._finish(number, data, rows)

    def data(self, number: int) -> TrainingRound:
        """The pairs of a round; where targets part from their bases, the step is known."""
        first = first_fused(self.settings.fusion.steps, len(self.session.ddim))
        return TrainingRound(
            self.session.experiment, number, self.settings.train.pairs, fused_from=first
        )

    def order(self, number: int, inner: int, data: TrainingRound) -> list[Update]:
        """The optimiser steps of one pass over a round's pairs, as this process shares in them.

        Denoising steps without any gradient are left out (Algorithm 1 has no others).
        """

        def steps_of(p: int) -> list[int]:
            begin = data.first_step(p) if self.objective.pairwise else 0
            return [i for i in range(begin, len(self.session.ddim)) if self.objective.weighs(i)]

        key = self.settings.seed, number, inner
        train, world = self.settings.train, self.session.runner.world
        return updates_of_pass(
            key,
            len(data.pairs),
            train.updates_per_inner_epoch,
            steps_of,
            world.rank,
            world.size,
            train.timestep_fraction,
        )

    def say(self, text: str) -> None:
        self.session.runner.say(text)

    def _updates(self, number: int, policy: Policy, data: TrainingRound) -> list[dict[str, Any]]:
        """All optimiser steps of a round; returns their metrics. Goes on where it was stopped."""
        passes = range(self.settings.train.num_inner_epochs)
        updates = [(inner, u) for inner in passes for u in self.order(number, inner, data)]
        steps = list(dict.fromkeys(step for _, update in updates for step in update.steps))
        pairs = sorted({step.pair for step in steps})
        data.check(pairs)
        updater = self.updater(policy, data, pairs)
        about = self._about(number, data)
        state = self.checkpoints.state_within(about)
        rows: list[dict[str, Any]] = []
        if state is None:
            if pairs:  # a process may have none
                self._check_sampler(policy, data, pairs)
            first = set(updates[0][1].steps)  # its own pass gives theta_old's log-probs
            updater.remember([step for step in steps if step not in first])
        else:
            self._load(self.checkpoints.within)
            self.checkpoints.load_known(self.rank, updater)
            rows = state["rows"]
            self.say(f"  going on after {len(rows)} optimiser steps of this round")
        for inner, update in updates[len(rows) :]:
            rows.append(self.update(number, inner, updater, update))
            if len(rows) < len(updates):
                self._save_within(about, updater, rows)
        return rows

    def updater(
        self, policy: Policy, data: TrainingRound, pairs: Sequence[int] | None = None
    ) -> Updater:
        """What walks over the steps of a round. pairs: those it will meet; None for all."""
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

    def update(self, number: int, inner: int, updater: Updater, update: Update) -> dict[str, Any]:
        """One optimiser step; returns its metrics."""
        if self.rank == 0:
            name = f"training, inner epoch {inner}"
            updater.watch = lambda total: Progress(name, total).advance
        try:
            norm, tally = self.stepper.step(updater, update)
        except NotSoundError as error:
            raise UserError(
                f"round {number}, training, inner epoch {inner}{error}; {self._intact()}; {CALMER}"
            ) from error
        scale = self.stepper.scale
        row = {
            "kind": "update",
            "round": number,
            "inner_epoch": inner,
            "grad_norm": norm,
            "skipped": norm == 0,
            "learning_rate": self.settings.train.learning_rate,
            **({"loss_scale": scale.value} if scale.adapts else {}),
            **tally.figures(),
        }
        self.say(
            f"  inner epoch {inner}: loss {row['loss']:.4f}, ratio {row['ratio']:.4f}, "
            + (f"gradient norm {norm:.2e}" if norm else "no gradient: the step is skipped")
        )
        return row

    def _load(self, folder: Path) -> None:
        """Go on with a checkpoint's policy, optimiser and loss scale."""
        state = self.checkpoints.load(folder, self.tuning, self.optimiser)
        self.stepper.scale.restore(state.get("loss_scale", {}))

    def _scale(self) -> dict[str, Any]:
        """The loss scale for a checkpoint's state, where there is one."""
        state = self.stepper.scale.state()
        return {"loss_scale": state} if state else {}

    def _intact(self) -> str:
        done = self.checkpoints.latest()
        return "no checkpoint yet" if done is None else f"checkpoint epoch{done} is intact"

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(values, reduction="sum")

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
            "layout": LAYOUT,
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
        self.checkpoints.save_known(self.rank, updater)
        self.accelerator.wait_for_everyone()
        if self.rank == 0:
            card = model_card(self.settings, about["round"], [])
            state = {**about, **self._scale(), "rows": rows}
            self.checkpoints.save_within(self.tuning, self.optimiser, state, card)

    def _finish(self, number: int, data: TrainingRound, rows: list[dict[str, Any]]) -> None:
        """Metrics and checkpoint, by one process."""
        if self.rank == 0:
            folder = self.session.experiment.folder
            indices = fused_indices(self.settings.fusion.steps, len(self.session.ddim))
            seconds = self.session.runner.stopwatch.take()
            row = metrics.round_row(number, data, seconds, indices, rows)
            metrics.append(folder / "metrics.jsonl", number, [*rows, row])
            scores = [*self._history(number), row["reward_mean"]]
            saved = self.checkpoints.save(
                number,
                self.tuning,
                self.optimiser,
                {"reward_means": scores, **self._scale()},
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
        sheet = contact_sheet(folder, page.collect(folder))
        tracking.log_images(self.accelerator, "pairs", sheet, last)


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
