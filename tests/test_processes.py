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

ROOT = Path(__file__).parent.parent
# What `accelerate launch` does for every process, with the settings read from a file.
RANK = """
import json, os, sys, torch
torch.set_num_threads(1)
os.fsync = lambda descriptor: None
from dfusion.settings import Settings
from dfusion.training import train_rounds
train_rounds(Settings.of(json.load(open(sys.argv[1]))))
"""


def launch(settings: Settings, folder: Path, processes: int = 2) -> None:
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
                    [sys.executable, "-c", RANK, str(folder / "settings.json")],
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
