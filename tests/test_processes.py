"""Several processes give the update of one: two gloo processes on the tiny model."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfusion.settings import Settings
from dfusion.training import train_rounds
from dfusion.verify import verify

ROOT = Path(__file__).parent.parent
# What `accelerate launch` does for every process, with the settings read from a file.
RANK = """
import json, os, sys, time, torch
torch.set_num_threads(1)
os.fsync = lambda descriptor: None
from dfusion import runs
from dfusion.settings import Settings
from dfusion.training import train_rounds
load = runs.load_reward
def loaded(*given):
    time.sleep(float(sys.argv[3]) if os.environ["RANK"] == "0" else 0)
    reward = load(*given)
    return lambda images, prompts: (print("scored", len(images)), reward(images, prompts))[1]
runs.load_reward = loaded
act = {"sample": runs.sample_rounds, "train": train_rounds}[sys.argv[2]]
act(Settings.of(json.load(open(sys.argv[1]))))
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
            assert process.wait(timeout=100) == 0, (folder / f"rank{rank}.log").read_text()
    finally:
        for process in running:
            process.kill()


def known(figures: float | list[float | None]) -> float | list[float]:
    """With -1 for steps of which nothing is known."""
    if isinstance(figures, list):
        return [-1.0 if figure is None else figure for figure in figures]
    return figures


@pytest.mark.parametrize("method", ["dpo", pytest.param("dpok", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(settings: Settings, tmp_path: Path, method: str) -> None:
    """Three pairs, so that the shares are unlike; two rounds, the second sampled by the first."""
    settings.prompt_file = settings.item_idx_file = ""
    settings.prompt, settings.item_idx = "a cat the sandwich", "cat,sandwich"
    settings.sample.num_batches_per_epoch, settings.sample.batch_size = 2, 3
    settings.fusion.batch_size = 1
    settings.train = replace(
        settings.train, num_epochs=2, learning_rate=1e-3, batch_size=3, method=method
    )
    alone = train_rounds(replace(settings, exp_name="alone"))
    launch(replace(settings, exp_name="together"), tmp_path)
    together = alone.parent / "together"
    for number in (0, 1):
        name = f"checkpoints/epoch{number}/pytorch_lora_weights.safetensors"
        a, b = load_file(alone / name), load_file(together / name)
        assert a.keys() == b.keys()
        # AdamW turns a gradient's rounding into part of a learning rate where it is near zero.
        assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)
        assert sum(float((a[k] - b[k]).norm()) for k in a) < 0.02 * sum(
            float(v.norm()) for k, v in a.items() if "up" in k or "lora_B" in k
        )
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").open()] for f in (alone, together)]
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
