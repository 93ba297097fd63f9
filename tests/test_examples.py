"""The examples run, on the testbed's model."""

import json
from pathlib import Path

import pytest

from examples import custom_loop

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code cell, in order; the target has the sky of the base."""
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads((ROOT / "examples/first_pair.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] or "import" in "".join(cell["source"])  # shown on GitHub
            exec("".join(cell["source"]), names)
    pair = names["pair"]
    base, reference, target = (states[-1][:, :3] for states in pair.trajectories)  # the sky
    assert (target - base).square().mean() < 0.5 * (target - reference).square().mean()


def test_the_loop_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testbed").symlink_to(ROOT / "testbed")
    custom_loop.main(rounds=1, images=4)
    assert (
        json.loads(next(x for x in capsys.readouterr().out.splitlines() if '"round"' in x))["pairs"]
        == 6
    )
    assert (tmp_path / "data/custom_loop/pytorch_lora_weights.safetensors").exists()
