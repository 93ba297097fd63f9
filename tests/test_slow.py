"""Slow tests: the full-size UNet, several processes, the command line as a user types it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.models import UNETS
from diffusers_patched import AttentionControl, Fusion, Record, UNet2DConditionModel

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def test_sd21_base_does_a_fused_step() -> None:
    """865 M parameters, random weights: layers, grids and rows as the paper says."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.of(UNet2DConditionModel(**UNETS["sd21"])).eval()
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 866
    table = unet.layers
    assert table.parse("mid,up") == {3, 4, 5, 6}
    assert table.grids == ((64, 64), (32, 32), (16, 16), (8, 8), (16, 16), (32, 32), (64, 64))

    x = torch.randn(4, 4, 64, 64)  # [reference_u, target_u, reference_c, target_c]
    text = torch.randn(1, 77, 1024).expand(4, -1, -1)
    record = Record(table.parse("first_up"), torch.tensor([[2, 5], [2, 5]]), first_row=2)
    mask = torch.zeros(4, 16, 16, dtype=torch.bool)
    mask[:, 4:12, 4:12] = True
    source = torch.tensor([0, 0, 2, 2])
    with torch.no_grad():
        plain = unet(x, torch.tensor(851), text).sample
        fused = unet(
            x,
            torch.tensor(851),
            text,
            control=AttentionControl(record, (Fusion(source, table.parse("3-6"), mask),)),
        )
    assert fused.maps.shape == (2, 2, 16, 16)
    change = (fused.sample - plain).abs().amax((1, 2, 3))
    assert change[[0, 2]].max() < 1e-5 * plain.abs().max()
    assert change[[1, 3]].min() > 1e-3 * plain.abs().max()


@pytest.fixture
def experiment(tmp_path: Path, pipeline_folder: Path) -> list[str]:
    """Flags of a small experiment on the tiny model."""
    (tmp_path / "p.json").write_text(json.dumps(["a cat the dog", "the dog"]))
    (tmp_path / "i.json").write_text(json.dumps({"a cat the dog": [1, 3], "the dog": ["dog"]}))
    return [
        f"--config.prompt_file={tmp_path}/p.json",
        f"--config.item_idx_file={tmp_path}/i.json",
        f"--config.pretrained.model={pipeline_folder}",
        "--config.device=cpu",
        "--config.eval.reward=tests.rewards:redness",
        "--config.sample.num_steps=4",
        "--config.fusion.steps=3-1",
        "--config.sample.batch_size=2",
        "--config.sample.num_batches_per_epoch=2",
    ]


def test_two_processes_give_what_one_gives(tmp_path: Path, experiment: list[str]) -> None:
    flags = [*experiment, "--config.exp_name=exp", "--config.eval.in_process"]
    one = [sys.executable, "run_sample.py", *flags, f"--config.save_path={tmp_path}/one"]
    two = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
        *("run_sample.py", *flags, f"--config.save_path={tmp_path}/two"),
    ]
    for command in (one, two):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    found = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").glob("**/*.*"))
    assert len(found) > 30
    for path in found:
        if path.suffix == ".safetensors":
            a, b = load_file(tmp_path / "one" / path), load_file(tmp_path / "two" / path)
            assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-4) for k in a), path
        else:
            assert (tmp_path / "two" / path).exists()


def test_two_terminals(tmp_path: Path, experiment: list[str]) -> None:
    """The loop as a user types it: scorer first, several experiments, stopped by Ctrl-C."""
    base = [*experiment, f"--config.save_path={tmp_path}"]
    scorer = subprocess.Popen([sys.executable, "run_eval.py", *base], cwd=ROOT)
    try:
        for name in ("first", "second"):
            command = [sys.executable, "run_sample.py", *base, f"--config.exp_name={name}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
            assert "look at" in done.stdout
            assert "\r" not in done.stdout  # a redirected log stays readable
            assert (tmp_path / name / "epoch0" / "adoption.json").exists()
    finally:
        scorer.terminate()  # as Ctrl-C, which a shell's background jobs ignore
        scorer.wait(20)
    assert scorer.returncode == 130
    assert not list((tmp_path / ".scorers").glob("*.json"))


def test_once_scores_what_is_there_and_ends(tmp_path: Path, experiment: list[str]) -> None:
    base = [*experiment, f"--config.save_path={tmp_path}", "--config.exp_name=exp"]
    sampler = subprocess.Popen([sys.executable, "run_sample.py", *base], cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "exp").is_dir() and time.monotonic() < deadline:
            time.sleep(0.1)
        while sampler.poll() is None and time.monotonic() < deadline:
            once = [sys.executable, "run_eval.py", *base, "--config.eval.once"]
            assert subprocess.run(once, cwd=ROOT, capture_output=True, timeout=100).returncode == 0
        assert sampler.wait(1) == 0
    finally:
        sampler.kill()
