"""Trackers: what reaches them, and that nothing depends on one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from PIL import Image

from dfusion.errors import UserError
from dfusion.settings.schema import Settings
from dfusion.training import tracking
from dfusion.training.trainer import train_rounds
from tests.conftest import metrics_of

ROOT = Path(__file__).parents[2]
LOGGED = """
from dfusion.training import tracking
from dfusion.settings.schema import Settings
settings = Settings(tracker="wandb", exp_name="exp", device="cpu")
accelerator = tracking.accelerator(settings, cpu=True)
tracking.start(accelerator, settings)
tracking.log(accelerator, {"loss": 1.0}, 0)
accelerator.end_training()
"""
ROW = {
    "kind": "round",
    "round": 3,
    "reward_mean": 0.5,
    "reward_by_prompt": {"a cat": [0.25, 0.125]},
    "seconds": {"sampling": 2.0},
    "clip_fraction": [0.1, None, 0.3],
    "mask_coverage": None,
}


def test_rows_are_flattened_with_steps_counted_down() -> None:
    assert tracking._flat(ROW) == {
        "reward_mean": 0.5,
        "reward/a cat": 0.25,
        "reward_std/a cat": 0.125,
        "seconds/sampling": 2.0,
        "clip_fraction/t=3": 0.1,
        "clip_fraction/t=1": 0.3,
    }


def test_wandb_runs_offline_without_a_login(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and a sheet of pictures are logged, in order of the optimiser steps.

    Sets WANDB_MODE and replaces the login check: it cannot see what happens without both, which
    the next test does.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(tracking, "_wandb_login", lambda: False)
    settings.tracker, settings.train.num_epochs = "wandb", 2
    sent: list[tuple[int, set[str]]] = []
    pictures: list[int] = []
    log, images = tracking.log, tracking.log_images

    def logged(accelerator: Accelerator, row: dict[str, Any], step: int) -> None:
        sent.append((step, set(tracking._flat(row))))
        log(accelerator, row, step)

    def drawn(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
        pictures.append(step)
        assert image.width > 500
        images(accelerator, name, image, step)

    monkeypatch.setattr(tracking, "log", logged)
    monkeypatch.setattr(tracking, "log_images", drawn)
    train_rounds(settings)
    assert [step for step, _ in sent] == [0, 1, 1, 2, 3, 3] and pictures == [1, 3]
    assert {"loss", "kl", "learning_rate", "clip_fraction/t=4"} <= sent[0][1]
    assert {"reward_mean", "adopted", "mask_coverage", "seconds/training"} <= sent[2][1]
    assert list((tmp_path / "log" / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_where_nobody_ever_logged_in(tmp_path: Path) -> None:
    """A process of its own: wandb reads its environment once a process."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    done = subprocess.run(
        [sys.executable, "-c", LOGGED],
        cwd=work,
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert list((work / "log" / "wandb").glob("offline-run-*/*.wandb"))


def test_precision_is_not_accelerates_to_choose(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` hands its own config to the processes in this variable."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state()
    assert tracking.accelerator(settings, cpu=True).mixed_precision == "no"


def test_a_config_that_shards_the_model_is_refused() -> None:
    for kind in DistributedType:
        if kind.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            with pytest.raises(UserError, match=kind.value):
                tracking.check_not_sharded(kind)
    tracking.check_not_sharded(DistributedType.MULTI_GPU)


def test_a_tracker_that_is_not_installed_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings.tracker = "tensorboard"
    with pytest.raises(UserError, match="pip install tensorboard"):
        tracking.accelerator(settings, cpu=True)


def test_tensorboard_has_a_folder_for_each_experiment(settings: Settings) -> None:
    """By the name that accelerate makes the folder of: tensorboard itself need not be there."""
    begun: list[str] = []

    class Recorder:
        def init_trackers(self, name: str, **kwargs: object) -> None:
            begun.append(name)

    for name in ("a", "b"):
        settings.tracker, settings.exp_name = "tensorboard", name
        tracking.start(Recorder(), settings)
    assert begun == ["a", "b"]


def test_tensorboard_has_the_figures_and_the_pictures(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    settings.tracker, settings.train.num_epochs = "tensorboard", 1
    train_rounds(settings)
    found = {}
    for events in (tmp_path / "log" / "exp").rglob("events.out.tfevents.*"):
        log = reader.EventAccumulator(str(events))
        log.Reload()
        found |= {tag: log.Scalars(tag)[-1].value for tag in log.Tags()["scalars"]}
        found |= dict.fromkeys(log.Tags()["images"])
    rows = metrics_of(tmp_path / "data/exp")
    assert found["reward_mean"] == pytest.approx(rows[-1]["reward_mean"])
    assert found["loss"] == pytest.approx(rows[-2]["loss"])
    assert "pairs" in found
