"""Training round after round: sample and fuse with the policy so far, update it (Algorithm 1)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.inversion import invert
from dfusion.method.sampling import Policy
from dfusion.models.batching import unfinished
from dfusion.progress import Progress
from dfusion.report import page
from dfusion.report.contact_sheet import contact_sheet
from dfusion.rounds.session import Session, begun, load_session
from dfusion.settings.check import check_training
from dfusion.settings.plain_values import flat
from dfusion.settings.schema import FREE, Settings
from dfusion.settings.steps import first_fused, fused_indices
from dfusion.storage.files import write_tensors
from dfusion.training import metrics, tracking
from dfusion.training.checkpoints import Checkpoints
from dfusion.training.gradients import Updater
from dfusion.training.learner import Learner
from dfusion.training.model_card import model_card
from dfusion.training.optimiser_step import NotSoundError
from dfusion.training.order import Update
from dfusion.training.pairs import TrainingRound

CALMER = "try --config.mixed_precision no or a lower --config.train.learning_rate"
LAYOUT = 2  # of checkpoints within a round; raised when older ones can no longer be resumed
COMPARED = 1_000_000  # stands in for a round's number in the noise of comparisons


class Trainer(Learner):
    """The policy, its optimiser, and the loop over rounds of one experiment."""

    def __init__(self, session: Session) -> None:
        self.session, self.settings = session, session.settings
        on_cpu = session.model.device.type == "cpu"
        self.accelerator = tracking.accelerator(self.settings, cpu=on_cpu)
        super().__init__(
            model=session.model,
            train=self.settings.train,
            seed=self.settings.seed,
            say=session.runner.say,
            processes=self.accelerator.num_processes,
            rank=session.runner.world.rank,
            add_up=self._sum,
        )
        self.checkpoints = Checkpoints(session.experiment.folder / "checkpoints")

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
        """Finish what a killed run left undone after its latest checkpoint."""
        if self.rank == 0 and (done := self.checkpoints.latest()) is not None:
            self.checkpoints.tidy(done, self.settings.train.num_checkpoint_limit)
            self._drop_states(done)

    def _report(self) -> None:
        if self.rank == 0:
            page.write(self.session.experiment.folder)

    def resume(self) -> int:
        """Restore the policy that this run continues from; returns the next round."""
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
        self.say(f"Continuing after round {done}")
        return done + 1

    def sampled(self, number: int) -> Policy:
        """Make what training needs of round `number`; returns the policy that sampled it."""
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
        """Make comparison images after `number` rounds of training, if they are due."""
        if self.settings.train.compares_after(number):
            runner = self.session.runner
            scores = runner.compare(number, self.session.policy(COMPARED))
            watched = runner.watched(self.session.experiment.comparison(number))
            also = f"; watch {np.mean(list(watched.values())):.4f}" if watched else ""
            mean = np.mean(list(scores.values()))
            self.say(f"  mean reward, same noise each time: {mean:.4f}{also}")

    def train_round(self, number: int, policy: Policy) -> None:
        """Inner epochs over the pairs of a round, then metrics and a checkpoint."""
        self.session.runner.watched(self.session.experiment.round(number))
        with self.session.runner.stopwatch.stage("training"):
            data = self.data(number)
            self.accelerator.wait_for_everyone()  # inverted states may be another process's
            rows = self._updates(number, policy, data)
        if all(row["skipped"] for row in rows):
            raise UserError(
                f"round {number}, training: the gradient's norm is 0; no pair has anything "
                f"to teach (equal scores only?); {self._intact()}; try other prompts, more images "
                "of each, or other --config.train.step_weights"
            )
        self._finish(number, policy, data, rows)

    def data(self, number: int) -> TrainingRound:
        """The pairs of a round, with the step at which targets depart from their bases."""
        first = first_fused(self.settings.fusion.steps, len(self.session.sampler))
        return TrainingRound(
            self.session.experiment,
            number,
            self.settings.train.pairs,
            fused_from=first,
            grouped=self.objective.loss.grouped,
        )

    def _updates(self, number: int, policy: Policy, data: TrainingRound) -> list[dict[str, Any]]:
        """All optimiser steps of a round; returns their metrics. Continues where it stopped."""
        updates = self.updates(number, data, self.session.sampler)
        pairs = sorted({step.pair for _, update in updates for step in update.steps})
        data.check(pairs)
        updater = self.updater(policy, data, pairs)
        about = self._about(number, data)
        state = self.checkpoints.state_within(about)
        rows: list[dict[str, Any]] = []
        if state is None:
            self.begin(updater, updates)
        else:
            self._load(self.checkpoints.within)
            self.checkpoints.load_known(self.rank, updater)
            rows = state["rows"]
            self.say(f"  continuing after {len(rows)} optimiser steps of this round")
        for inner, update in updates[len(rows) :]:
            rows.append(self.update(number, inner, updater, update))
            if len(rows) < len(updates):
                self._save_within(about, updater, rows)
        return rows

    def update(self, number: int, inner: int, updater: Updater, update: Update) -> dict[str, Any]:
        try:
            return super().update(number, inner, updater, update)
        except NotSoundError as error:
            raise UserError(
                f"round {number}, training, inner epoch {inner}{error}; {self._intact()}; {CALMER}"
            ) from error

    def _load(self, folder: Path) -> None:
        """Restore a checkpoint's policy, optimiser and loss scale."""
        state = self.checkpoints.load(folder, self.tuning, self.optimiser)
        self.stepper.scale.restore(state.get("loss_scale", {}))

    def _scale(self) -> dict[str, Any]:
        """The loss scale for a checkpoint's state, if there is one."""
        state = self.stepper.scale.state()
        return {"loss_scale": state} if state else {}

    def _intact(self) -> str:
        done = self.checkpoints.latest()
        return "no checkpoint yet" if done is None else f"checkpoint epoch{done} is intact"

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values, reduction="sum")

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
        """What must match before a checkpoint within a round is resumed: its pairs and settings."""
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
            card = model_card(self.settings, self.session.model, about["round"], [])
            state = {**about, **self._scale(), "rows": rows}
            self.checkpoints.save_within(self.tuning, self.optimiser, state, card)

    def _finish(
        self, number: int, policy: Policy, data: TrainingRound, rows: list[dict[str, Any]]
    ) -> None:
        """Write metrics and checkpoint, on one process."""
        if self.rank == 0:
            folder = self.session.experiment.folder
            fusion = self.settings.fusion
            steps = fusion.steps if fusion.kind == "attention" else ""
            indices = fused_indices(steps, len(self.session.sampler))
            seconds = self.session.runner.stopwatch.take()
            row = metrics.round_row(number, data, seconds, indices, rows)
            row["noise_norm"] = self.noise_norm(policy, data)
            metrics.append(folder / "metrics.jsonl", number, [*rows, row])
            scores = [*self._history(number), row["reward_mean"]]
            saved = self.checkpoints.save(
                number,
                self.tuning,
                self.optimiser,
                {"reward_means": scores, **self._scale()},
                model_card(self.settings, self.session.model, number, scores),
                self.settings.train.num_checkpoint_limit,
            )
            self._track(number, rows, row)
            self.say(f"  trained on {len(data.pairs)} pairs; checkpoint in {saved}")
            self._drop_states(number)
        self.accelerator.wait_for_everyone()

    def _drop_states(self, done: int) -> None:
        """Delete what --config.keep_trajectories does not keep of trained rounds up to `done`."""
        trained = range(self.settings.train.begin_epoch, done + 1)
        self.session.experiment.drop_states(trained, self.settings.keep_trajectories)

    def _history(self, number: int) -> list[float]:
        """Mean rewards of all earlier rounds."""
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
        sheet = contact_sheet(self.session.experiment.folder)
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
