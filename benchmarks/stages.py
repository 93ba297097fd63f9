"""What is measured: each stage as the library does it, its bare calls and its baseline."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import bare, baselines
from benchmarks.counter import counting
from benchmarks.timing import Race, Work
from benchmarks.workbench import quiet
from dfusion.method.fusion import Source, fuse
from dfusion.method.sampling import sample
from dfusion.models.batching import guess
from dfusion.rewards.registry import load_reward
from dfusion.rounds.scoring import score_missing
from dfusion.rounds.session import Session
from dfusion.settings.schema import Eval
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors
from dfusion.storage.round_files import read_source, read_trajectory
from dfusion.training.trainer import Trainer

T = TypeVar("T")
TimeInTurns = Callable[[Mapping[str, Work]], Race]


@dataclass(frozen=True)
class Stage:
    """The times of a stage, and what was seen beside them.

    evaluations: of one run, by name. difference: between ours and the baseline, in units of the
    largest value.
    """

    race: Race
    evaluations: dict[str, float]
    difference: float | None = None


def sampling(session: Session, unet: nn.Module, time_in_turns: TimeInTurns) -> Stage:
    """All samples of the round. unet: the stock one, without LoRA."""
    policy, layers = session.policy(0), session.runner.mask_layers
    prompts = session.experiment.round(0).sample_prompts()
    batches = _chunks(range(len(prompts)), session.settings.sample.batch_size)

    def ours() -> None:
        for batch in batches:
            sample(policy, batch, [prompts[i] for i in batch], layers)

    rows = [2 * len(batch) for batch in batches for _ in policy.sampler.timesteps]
    return _raced(
        session, {"ours": ours}, bare.unet_calls(unet, session.model, rows), time_in_turns
    )


def fusion(session: Session, unet: nn.Module, time_in_turns: TimeInTurns) -> Stage:
    """All targets of the round, against the bare calls and the released design."""
    policy, plan = session.policy(0), session.runner.plan
    sources = _sources(session)
    size = guess(session.settings.fusion.batch_size)
    batches = _chunks(sources, size)

    def ours() -> Tensor:
        return torch.stack([t.latents for batch in batches for t in fuse(policy, plan, batch)])

    def released() -> Tensor:
        return torch.stack(baselines.released_fusion(policy, plan, sources, size))

    rows = [4 * len(batch) for batch in batches for _ in plan.steps]
    calls = bare.unet_calls(unet, session.model, rows)
    stage = _raced(session, {"ours": ours, "baseline": released}, calls, time_in_turns)
    first = stage.race.first
    difference = relative_difference([first["ours"][0]], [first["baseline"][0]])
    return Stage(stage.race, stage.evaluations, difference)


def training(trainer: Trainer, unet: nn.Module, time_in_turns: TimeInTurns) -> Stage:
    """All inner epochs of the round, optimiser steps included. unet: stock, with LoRA."""
    session, train = trainer.session, trainer.settings.train
    data, policy = trainer.data(0), session.policy(0)
    orders = [
        trainer.order(0, inner, data, trainer.session.sampler)
        for inner in range(train.num_inner_epochs)
    ]

    def ours() -> None:
        updater = trainer.updater(policy, data)
        with quiet():
            for inner, updates in enumerate(orders):
                for update in updates:
                    trainer.update(0, inner, updater, update)

    def plain() -> None:
        _plain_training(trainer, examples(session))

    size, updates = guess(train.batch_size), [update for order in orders for update in order]
    chunks = [chunk for update in updates for chunk in _chunks(update.steps, size)]
    calls = bare.unet_calls(unet, session.model, [4 * len(c) for c in chunks], trained=True)
    difference = gradient_difference(trainer)
    stage = _raced(session, {"ours": ours, "baseline": plain}, calls, time_in_turns)
    return Stage(stage.race, stage.evaluations, difference)


def scoring(session: Session, settings: Eval, time_in_turns: TimeInTurns) -> Stage:
    """Scores of the round's images, read from disk, against the image tower alone."""
    device, original = session.model.device, session.experiment.round(0)
    round_ = _copy_to_score(original, session.experiment.folder / "scoring")
    reward = load_reward(settings, device)
    tower, batches = _tower(settings, round_, device)

    def ours() -> None:
        round_.scores_file("images").unlink(missing_ok=True)
        with quiet():
            score_missing(round_, "images", reward, "clip", settings.batch_size)

    return Stage(time_in_turns({"ours": ours, "bare": bare.tower_calls(tower, batches)}), {})


def examples(session: Session) -> list[baselines.Example]:
    """The round's pairs, targets preferred, with whole trajectories in memory."""
    round_ = session.experiment.round(0)
    return [
        baselines.Example(
            pair.prompt,
            read_tensors(round_.target(p))["latents"],
            read_trajectory(round_, pair.base).latents,
        )
        for p, pair in enumerate(round_.pairs() or ())
    ]


def gradient_difference(trainer: Trainer) -> float:
    """Between the library's first update and the plain loop's."""
    session, parameters = trainer.session, trainer.tuning.parameters
    data, policy = trainer.data(0), session.policy(0)
    updater = trainer.updater(policy, data)
    updater.loss_scale = trainer.loss_scale
    (update,) = trainer.order(0, 0, data, trainer.session.sampler)
    updater.backward(update.steps)
    ours = [p.grad.clone() for p in parameters if p.grad is not None]
    trainer.optimiser.zero_grad()
    pairs = examples(session)
    old = baselines.old_policy_pass(policy, trainer.network, pairs)
    _plain_epoch(trainer, pairs, old)
    theirs = [p.grad.clone() for p in parameters if p.grad is not None]
    return relative_difference(ours, theirs)


def relative_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest difference of two lists of tensors, in units of the second's largest value."""
    largest = max(float(y.abs().max()) for y in b)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / largest


def _raced(
    session: Session, works: dict[str, Work], calls: Work, time_in_turns: TimeInTurns
) -> Stage:
    """A race of works that use the session's UNet with bare calls of a stock one."""

    def counted(work: Work) -> Callable[[], tuple[Any, float]]:
        def run() -> tuple[Any, float]:
            with counting(session.model.network) as count:
                result = work()
            return result, count.total

        return run

    found = time_in_turns({**{k: counted(w) for k, w in works.items()}, "bare": calls})
    return Stage(found, {name: found.first[name][1] for name in works})


def _plain_training(trainer: Trainer, pairs: list[baselines.Example]) -> None:
    """The round as a plain loop trains on it: old policy first, then pair by pair."""
    policy, parameters = trainer.session.policy(0), trainer.tuning.parameters
    old = baselines.old_policy_pass(policy, trainer.network, pairs)
    for _ in range(trainer.settings.train.num_inner_epochs):
        trainer.optimiser.zero_grad(set_to_none=True)
        _plain_epoch(trainer, pairs, old)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(trainer.loss_scale * len(pairs) * len(policy.sampler))
        nn.utils.clip_grad_norm_(parameters, trainer.settings.train.max_grad_norm)
        trainer.optimiser.step()


def _plain_epoch(trainer: Trainer, pairs: list[baselines.Example], old: list[list[Tensor]]) -> None:
    train = trainer.settings.train
    baselines.plain_inner_epoch(
        trainer.session.policy(0),
        trainer.network,
        pairs,
        old,
        train.beta,
        train.eps,
        trainer.loss_scale,
    )


def _sources(session: Session) -> list[Source]:
    round_ = session.experiment.round(0)
    prompts = round_.sample_prompts()
    return [read_source(round_, pair, prompts) for pair in round_.pairs() or ()]


def _copy_to_score(original: Round, folder: Path) -> Round:
    """The plan and the images of a round, without its scores."""
    shutil.copytree(original.folder / "images", folder / "images")
    shutil.copy(original.folder / "manifest.json", folder)
    return Round(folder)


def _tower(
    settings: Eval, round_: Round, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """CLIP's image tower, and the round's images as it wants them, in the scorer's batches."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        settings.model, pretrained=settings.pretrained or None, device=device
    )
    model.eval().requires_grad_(False)
    paths = [round_.image("images", i) for i in range(len(round_.sample_prompts()))]
    pixels = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths])
    return model.encode_image, list(pixels.to(device).split(settings.batch_size))


def _chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
