"""A small real round of one prompt, made by the library itself, to measure stages on."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.counter import counting
from benchmarks.table3 import RoundCount, RoundSize
from dfusion.method.prompts import Item, Prompt
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.numerics import set_numerics
from dfusion.models.plan import plan_of, sampler_of
from dfusion.rounds.runner import RoundRunner
from dfusion.rounds.session import PRECISIONS, Session
from dfusion.rounds.waiting import World
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import write_json
from dfusion.training.trainer import Trainer

PROMPT = Prompt("a star holding a flag", (Item("star"), Item("flag")))  # Otsu's thresholds


def settings_of(
    model: DiffusionModel, pairs: int, batch_size: int, steps: int, folder: Path
) -> Settings:
    """Every UNet call has 4 batch_size rows; the first two steps are unfused; all are adopted.

    Raises ValueError where the pairs do not fill their batches.
    """
    if pairs % batch_size:
        raise ValueError(f"{pairs} pairs do not fill batches of {batch_size}")
    settings = Settings(save_path=str(folder), exp_name="bench")
    settings.device = "cuda" if model.device.type == "cuda" else "cpu"
    settings.mixed_precision = PRECISIONS[model.dtype]
    settings.sample.num_steps = steps
    settings.sample.batch_size = 2 * batch_size
    settings.sample.num_batches_per_epoch = pairs // batch_size
    settings.fusion.steps = f"{steps - 2 if steps > 2 else steps}-1"
    settings.fusion.batch_size = settings.train.batch_size = batch_size
    settings.pair.adoption = "all"
    settings.eval.reward = f"{__name__}:brightness"
    return settings


def open_workbench(model: DiffusionModel, settings: Settings) -> Session:
    """A session on a model that is loaded already."""
    set_numerics(settings)
    plan, mask_layers = plan_of(settings, model.layers)
    experiment = Experiment(Path(settings.save_path) / settings.exp_name)
    write_json(experiment.config_file, {"settings": settings.to_dict()})
    runner = RoundRunner(
        settings, experiment, (PROMPT,), plan, mask_layers, World(), reward=brightness
    )
    sampler = sampler_of(settings, model)
    return Session(settings, experiment, runner, model, sampler)


def brightness(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A reward that costs nothing."""
    return [float(np.asarray(image).mean()) for image in images]


def make_round(session: Session) -> RoundCount:
    """Sample, pair and fuse round 0; the evaluations it took (no training yet)."""
    unet, guided = session.model.network, session.settings.sample.cfg
    policy = session.policy(0)
    with quiet():
        with counting(unet, guided) as sampled:
            session.runner.prepare(0, policy)
        with counting(unet, guided) as fused:
            session.runner.run(0, policy)
    return RoundCount(sampling=sampled.total, fusion=fused.total, training=0)


def train_round(trainer: Trainer) -> RoundCount:
    """Train on round 0; the evaluations it took."""
    session = trainer.session
    with quiet(), counting(session.model.network, session.settings.sample.cfg) as count:
        trainer.train_round(0, session.policy(0))
    return RoundCount(0, 0, training=count.trained + count.backward, checks=count.plain)


def size_of(session: Session) -> RoundSize:
    """The size of round 0."""
    round_ = session.experiment.round(0)
    return RoundSize(
        images=len(round_.sample_prompts()),
        pairs=len(round_.pairs() or ()),
        steps=len(session.sampler),
        fused_steps=len(session.runner.plan.steps),
        inner_epochs=session.settings.train.num_inner_epochs,
    )


def quiet() -> contextlib.AbstractContextManager[object]:
    """Nothing is printed in the block."""
    return contextlib.redirect_stdout(io.StringIO())
