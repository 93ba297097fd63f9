"""--config.compile: no graph break in a block, each graph compiled once, the same values."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.schema import Settings
from dfusion.training.trainer import Trainer, train_rounds
from tests.conftest import small


def test_a_compiled_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states, maps and weights of a plain run; all graphs are there after the first round.

    Graphs of a block: with maps kept, with keys fused, with gradients, and plain, where widths and
    grids ask for their own; and two without the LoRA, for the norm of the predicted noise. Another
    batch of prompts, a denoising step, a round or an update of the LoRA asks for none.
    """
    torch.compiler.reset()
    counters.clear()
    counter = CompileCounter()
    compiled = functools.partialmethod(DiffusionModel.compile, backend=counter)
    monkeypatch.setattr(DiffusionModel, "compile", compiled)
    graphs = []
    update = Trainer.update

    def counted(*args: Any) -> dict[str, Any]:
        row = update(*args)
        graphs.append(counter.frame_count)
        return row

    monkeypatch.setattr(Trainer, "update", counted)
    folders = []
    for name in ("plain", "compiled"):
        chosen = small(settings, 2, name)
        chosen.compile = name == "compiled"
        chosen.fusion.layers, chosen.train.compare_every = "mid", 1
        folders.append(train_rounds(chosen))
    assert graphs[:4] == [0] * 4 and 0 < graphs[4] < 10
    assert graphs[5] == graphs[4] and graphs[6] == graphs[4] + 2
    assert counter.frame_count == graphs[6] and not counters["graph_break"]
    for kind in ("epoch1/trajectories", "epoch1/targets", "checkpoints/epoch1"):
        assert_close(*(folder / kind for folder in folders))


def assert_close(one: Path, other: Path) -> None:
    """All tensors in two folders, within what channels_last rounds differently."""
    files = sorted(one.rglob("*.safetensors"))
    assert files
    for file in files:
        others = load_file(other / file.relative_to(one))
        for name, values in load_file(file).items():
            assert torch.allclose(values.float(), others[name].float(), atol=1e-3), (file, name)
