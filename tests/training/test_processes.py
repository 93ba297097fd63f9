"""Several processes give the update of one: two gloo processes on the tiny model."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dfusion.commands.verify import verify
from dfusion.settings.schema import Settings
from dfusion.training.trainer import train_rounds
from tests.conftest import metrics_of

ROOT = Path(__file__).parents[2]
# What `accelerate launch` does for every process, with the settings read from a file.
RANK = """
import json, os, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
os.fsync = lambda descriptor: None
from dfusion.rounds import session
from dfusion.settings.schema import Settings
from dfusion.training.trainer import train_rounds
load = session.load_reward
def loaded(*given):
    time.sleep(float(sys.argv[3]) if os.environ["RANK"] == "0" else 0)
    reward = load(*given)
    return lambda images, prompts: (print("scored", len(images)), reward(images, prompts))[1]
session.load_reward = loaded
act = {"sample": session.sample_rounds, "train": train_rounds}[sys.argv[2]]
act(Settings.of(json.loads(Path(sys.argv[1]).read_text())))
"""


def launch(settings: Settings, folder: Path, act: str = "train", scorer_takes: int = 0) -> None:
    """Two processes. act: sample or train. scorer_takes: seconds to load, in process 0."""
    processes = 2
    (folder / "settings.json").write_text(json.dumps(settings.to_dict()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
    }
    running = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        with open(folder / f"rank{rank}.log", "w") as log:
            running.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        RANK,
                        str(folder / "settings.json"),
                        act,
                        str(scorer_takes),
                    ],
                    cwd=ROOT,
                    env={**os.environ, **shared, **own},
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        for rank, process in enumerate(running):
            assert process.wait(timeout=300) == 0, (folder / f"rank{rank}.log").read_text()
    finally:
        for process in running:
            process.kill()


def known(figures: float | list[float | None]) -> float | list[float]:
    """With -1 for steps of which nothing is known."""
    if isinstance(figures, list):
        return [-1.0 if figure is None else figure for figure in figures]
    return figures


@pytest.mark.parametrize(
    ("method", "updates", "rounds"),
    [("dpo", 8, 1), pytest.param("dpok", 1, 2, marks=pytest.mark.slow)],
)
def test_two_processes_train_as_one(
    settings: Settings, tmp_path: Path, method: str, updates: int, rounds: int
) -> None:
    """Nine pairs in eight steps: in seven of them one of the processes has no pair.

    AdamW's epsilon is far above the gradients, so that a weight moves in proportion to its gradient
    (AdamW alone would turn the rounding of a gradient near zero into a whole learning rate): what
    is left between one and two processes is float32's rounding.
    """
    settings.prompt_file = settings.item_idx_file = ""
    settings.prompt, settings.item_idx = "a cat the sandwich", "cat,sandwich"
    settings.sample.num_batches_per_epoch, settings.sample.batch_size = 3, 6
    settings.sample.num_steps, settings.fusion.steps, settings.fusion.batch_size = 2, "2-1", 1
    settings.train = replace(
        settings.train,
        num_epochs=1,
        batch_size=3,
        method=method,
        compare_images=0,
        updates_per_inner_epoch=updates,
        learning_rate=0.03,
        adam_epsilon=1.0,
    )
    alone = train_rounds(replace(settings, exp_name="alone"))
    launch(replace(settings, exp_name="together"), tmp_path)
    together = alone.parent / "together"
    for number in range(rounds):
        name = f"checkpoints/epoch{number}/pytorch_lora_weights.safetensors"
        a, b = (load_file(folder / name) for folder in (alone, together))
        assert a.keys() == b.keys()
        # LoRA's B begins at zero: all of it is what training did.
        ups = [k for k in a if ".lora.up." in k or ".lora_B." in k]
        size = sum(float(a[k].square().sum()) for k in ups) ** 0.5
        apart = sum(float((a[k] - b[k]).square().sum()) for k in ups) ** 0.5
        assert size > 1e-3
        assert apart < 1e-4 * size, (apart, size)
    rows = [metrics_of(folder) for folder in (alone, together)]
    for one, two in zip(*rows, strict=True):
        if one["kind"] == "update":
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
            for name in ("loss", "kl", "ratio", "gradient_share", "clip_fraction", "fusion_shift"):
                close = pytest.approx(known(one[name]), rel=1e-2, abs=1e-5)
                assert known(two[name]) == close, name


def test_two_processes_sample_though_the_scorer_loads_slowly(
    settings: Settings, tmp_path: Path
) -> None:
    """Process 0 writes config.json when all is loaded; the other must not take it for lost."""
    settings.eval = replace(settings.eval, batch_size=1)
    launch(replace(settings, exp_name="slow"), tmp_path, act="sample", scorer_takes=3)
    assert verify(Path(settings.save_path) / "slow") == []
    for rank in (0, 1):  # eight samples and four targets, shared out
        assert (tmp_path / f"rank{rank}.log").read_text().count("scored 1\n") == 6
