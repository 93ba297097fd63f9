"""Training round after round: sample and fuse with the policy so far, update it (Algorithm 1)."""

import contextlib
import json
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from dfusion import lora, report
from dfusion.checkpoints import Checkpoints
from dfusion.errors import UserError
from dfusion.files import write_bytes
from dfusion.progress import Progress
from dfusion.runs import Session, open_session
from dfusion.sampling import Policy
from dfusion.settings import Settings
from dfusion.steps import parse_steps
from dfusion.transitions import Step, TrainingRound
from dfusion.updates import Objective, Old, backward, sampling_gap

# How far a log-prob may be from the one it was sampled with, in nats per dimension.
GAP = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Trainer:
    """The policy, its optimiser, and the loop over rounds of one experiment."""

    def __init__(self, session: Session) -> None:
        self.session, self.settings = session, session.settings
        train, unet = session.settings.train, session.model.unet
        self.accelerator = Accelerator(cpu=session.model.device.type == "cpu")
        parameters = lora.add(unet, train.lora_rank, train.lora_alpha, session.settings.seed)
        self.names = [name for name, p in unet.named_parameters() if p.requires_grad]
        if train.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.optimiser = torch.optim.AdamW(
            parameters,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.adam_weight_decay,
            eps=train.adam_epsilon,
        )
        self.parameters = parameters
        # Under DDP only a call of the wrapped module exchanges gradients.
        self.network: nn.Module = self.accelerator.prepare_model(unet, device_placement=False)
        self.objective = Objective(
            method=train.method,
            beta=train.beta,
            form=train.ratio,
            clip=train.eps if train.eps > 0 else None,
            advantage_max=train.adv_clip_max,
            dpok_alpha=train.dpok_alpha,
            dpok_beta=train.dpok_beta,
        )
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
        done = self.checkpoints.latest()
        first = self.settings.train.begin_epoch
        if done is not None:
            self.checkpoints.load(done, self.session.model.unet, self.optimiser, self.names)
            self.say(f"Going on after round {done}")
            first = done + 1
        for number in range(first, self.settings.train.num_epochs):
            policy = self.session.policy(number)
            if self.settings.train.pairs == "naive":
                self.session.runner.prepare(number, policy)
            else:
                self.session.runner.run(number, policy)
            self.train_round(number, policy)

    def train_round(self, number: int, policy: Policy) -> None:
        """Inner epochs over the pairs of a round, then metrics and a checkpoint."""
        train = self.settings.train
        data = self.data(number)
        started = time.monotonic()
        share = list(self.session.runner.world.mine(len(data.pairs)))
        if not share:
            raise UserError("more processes than pairs; start fewer, or sample more images")
        self._check_sampler(policy, data, share)
        old = Old()
        rows = []
        for inner in range(train.num_inner_epochs):
            steps = self.order(number, inner, data, share)
            progress = Progress(f"training, inner epoch {inner}", len(steps))
            self.optimiser.zero_grad(set_to_none=True)
            tally = backward(
                policy,
                self.network,
                data,
                steps,
                self.objective,
                old,
                first=inner == 0,
                boost=self.boost,
                batch_size=train.batch_size,
                sync=self._sync,
                advance=progress.advance if self.rank == 0 else lambda count: None,
            )
            # DDP averages over processes; the loss is the mean over all pairs and all steps.
            scale = self.accelerator.num_processes / (len(data.pairs) * len(policy.ddim))
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale / self.boost)
            norm = float(nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm))
            if not math.isfinite(norm) or norm == 0:
                raise UserError(
                    f"round {number}, inner epoch {inner}: the gradient's norm is {norm}; the last "
                    "checkpoint is intact; try --config.mixed_precision no or a lower learning rate"
                )
            self.optimiser.step()
            figures = {"round": number, "inner_epoch": inner, "grad_norm": norm, **tally.figures()}
            rows.append(figures)
            self.say(
                f"  inner epoch {inner}: loss {figures['loss']:.4f}, ratio {figures['ratio']:.4f}, "
                f"gradient norm {norm:.2e}"
            )
        self._finish(number, data, rows, time.monotonic() - started)

    def data(self, number: int) -> TrainingRound:
        """The pairs of a round; where targets part from their bases, the step is known."""
        steps = len(self.session.ddim)
        fused = parse_steps(self.settings.fusion.steps, steps)
        first = steps - max(fused) if fused else steps
        train = self.settings.train
        return TrainingRound(self.session.experiment, number, train.pairs, first)

    def order(self, number: int, inner: int, data: TrainingRound, share: list[int]) -> list[Step]:
        """This process's steps: pairs shuffled, and each pair's steps (Algorithm 1).

        Steps without any gradient are left out.
        """
        rng = np.random.default_rng((self.settings.seed, number, inner, self.rank))
        order = []
        for p in rng.permutation(share):
            begin = data.first_step(int(p)) if self.objective.pairwise else 0
            steps = np.arange(begin, len(self.session.ddim))
            order += [Step(int(p), int(i)) for i in rng.permutation(steps)]
        return order

    def say(self, text: str) -> None:
        self.session.runner.say(text)

    def _sync(self, last: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)

    def _check_sampler(self, policy: Policy, data: TrainingRound, share: list[int]) -> None:
        """Stop if the network that trains is not the one that sampled (ratio = 1)."""
        last = len(policy.ddim) - 1
        steps = [Step(p, i) for p, i in zip(share[:4], (0, last, last // 2, 1), strict=False)]
        gap = sampling_gap(policy, self.network, data, steps)
        limit = max(GAP[self.session.model.dtype], GAP[policy.store_dtype])
        if not gap <= limit:
            raise UserError(
                f"the policy that trains is not the one that sampled this round: log-probs differ "
                f"by {gap:.2g} (at most {limit:.2g}); was the round sampled with another LoRA, "
                "precision, guidance or eta? Sample it again under another --config.exp_name"
            )

    def _finish(self, number: int, data: TrainingRound, rows: list[dict], seconds: float) -> None:
        """Metrics, checkpoint and page, by one process."""
        if self.rank == 0:
            folder = self.session.experiment.folder
            scores = list(data.round.scores("images").values())
            summary = {
                "reward_mean": float(np.mean(scores)),
                "reward_std": float(np.std(scores)),
                "pairs": len(data.pairs),
                "adopted": sum(data.fused) / len(data.pairs),
                "learning_rate": self.settings.train.learning_rate,
                "seconds": seconds,
            }
            _append(folder / "metrics.jsonl", [{**row, **summary} for row in rows])
            saved = self.checkpoints.save(
                number,
                self.session.model.unet,
                self.optimiser,
                self.names,
                {"reward_mean": summary["reward_mean"]},
                model_card(self.settings, number, summary),
                self.settings.train.num_checkpoint_limit,
            )
            report.write(folder)
            self.say(f"  trained on {len(data.pairs)} pairs; checkpoint in {saved}")
        self.accelerator.wait_for_everyone()


def _append(path: Path, rows: list[dict]) -> None:
    """Add metrics rows, dropping any of the same round that an interrupted run left."""
    old = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in old if json.loads(line)["round"] < rows[0]["round"]]
    write_bytes(path, "".join(f"{line}\n" for line in [*kept, *map(json.dumps, rows)]).encode())


def model_card(settings: Settings, number: int, summary: dict[str, float]) -> str:
    """A short README.md for a checkpoint."""
    train = settings.train
    return f"""---
base_model: {settings.pretrained.model}
library_name: diffusers
tags: [lora, text-to-image, d-fusion, {train.method}]
---
LoRA of rank {train.lora_rank} after round {number} of {train.method.upper()} on {train.pairs}
pairs (D-Fusion, arXiv:2505.22002). Prompts: {settings.prompt_file or settings.prompt}. Mean reward
({settings.eval.reward}) of the round's samples, before this update: {summary["reward_mean"]:.4f}.

    pipe.load_lora_weights("path/to/this/folder")
"""


def train_rounds(settings: Settings) -> Path:
    """Sample, score, fuse and train, round after round; returns the experiment's folder.

    Raises UserError for bad input, before a model loads where that is possible.
    """
    trainer = Trainer(open_session(settings))
    trainer.run()
    folder = trainer.session.experiment.folder
    trainer.say(f"Checkpoints are in {folder / 'checkpoints'}, metrics in {folder}/metrics.jsonl")
    return folder
