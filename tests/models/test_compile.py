"""--config.compile: no graph break in a block, each graph compiled once, the same values."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from dfusion.method.fusion import FusionPlan, fusion_control
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.sd3 import SD3
from dfusion.settings.schema import Settings
from dfusion.training.trainer import Trainer, train_rounds
from diffusers_patched import AttentionControl, Record
from tests.conftest import small
from tests.tiny import make_sd3


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


def test_blocks_of_a_transformer_share_graphs(tmp_path: Path) -> None:
    """Of the tiny SD3's four blocks, two are alike; the last two differ from them and each other.

    Another layer asks for no graph of its own.
    """
    torch.compiler.reset()
    counters.clear()
    counter, stock = CompileCounter(), SD3(make_sd3(tmp_path), "cpu", torch.float32)
    compiled = SD3(make_sd3(tmp_path), "cpu", torch.float32)
    compiled.compile(counter)
    graphs = []
    calls = [None, recording(stock, 0), recording(stock, 1), fusing(stock, "all"), None]
    for control in [*calls, fusing(stock, "early,late"), fusing(stock, "middle")]:
        found, expected = (called(model, control) for model in (compiled, stock))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is theirs is None or torch.allclose(ours, theirs, atol=1e-5)
        graphs.append(counter.frame_count)
    assert graphs == [3, 4, 4, 7, 7, 7, 7] and not counters["graph_break"]


def called(model: DiffusionModel, control: AttentionControl | None) -> tuple[Any, ...]:
    """The guided output of two samples, and the maps."""
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(7))
    cond = model.encode(["a cat", "the dog"])
    with torch.no_grad():
        return model.predict(x, torch.tensor(501.0), cond, 5.0, control=control)


def recording(model: DiffusionModel, layer: int) -> AttentionControl:
    keys = model.map_keys(["a cat", "the dog"])
    return AttentionControl(Record(frozenset({layer}), torch.tensor([[2], [2]]), 2, keys))


def fusing(model: DiffusionModel, layers: str) -> AttentionControl:
    mask = torch.zeros(1, *model.layers.grids[0], dtype=torch.bool)
    mask[:, 1:3] = True
    return fusion_control(FusionPlan(model.layers.parse(layers), frozenset({1})), mask, True)


def assert_close(one: Path, other: Path) -> None:
    """All tensors in two folders, within what channels_last rounds differently."""
    files = sorted(one.rglob("*.safetensors"))
    assert files
    for file in files:
        others = load_file(other / file.relative_to(one))
        for name, values in load_file(file).items():
            assert torch.allclose(values.float(), others[name].float(), atol=1e-3), (file, name)
