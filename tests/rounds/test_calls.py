"""How many images go into one call: by flag or as many as fit, the images stay the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from dfusion.models import stable_diffusion
from dfusion.models.batching import Fit
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.rounds import runner, session
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from tests.conftest import make_pipeline


class OnGpu(Fit):
    """As on a GPU, where sizes are found by trying."""

    def __init__(self, flag: str, asked: int | str, device: torch.device, **more: Any) -> None:
        super().__init__(flag, asked, torch.device("cuda"), **more)


class Limited:
    """A function of a batch that holds `room` items; sizes: of the calls that went well."""

    def __init__(self, work: Any, room: int, place: int) -> None:
        self.work, self.room, self.place = work, room, place
        self.sizes: list[int] = []

    def __call__(self, *args: Any) -> Any:
        batch: Sequence = args[self.place]
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        self.sizes.append(len(batch))
        return self.work(*args)


def test_calls_grow_while_they_fit_and_shrink_when_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As many images, the same ones to rounding; a run that is repeated makes what is missing."""
    plain = Experiment(session.sample_rounds(settings)).round(0)
    monkeypatch.setattr(runner, "Fit", OnGpu)
    drawn, fused = Limited(runner.sample, 3, 1), Limited(runner.make_targets, 1, 2)
    monkeypatch.setattr(runner, "sample", drawn)
    monkeypatch.setattr(runner, "make_targets", fused)
    settings.exp_name, settings.sample.images_per_call = "auto", "auto"
    found = Experiment(session.sample_rounds(settings)).round(0)
    assert drawn.sizes == [1, 2, 2, 2, 1] and fused.sizes == [1, 1, 1, 1]
    said = capsys.readouterr().out
    assert "--config.sample.images_per_call is 2 from" in said
    assert "--config.fusion.batch_size is 1 from" in said
    assert len(list((found.folder / "images").iterdir())) == 8
    for one, other in (
        (plain.trajectory(5), found.trajectory(5)),
        (plain.target(3), found.target(3)),
    ):
        latents = [load_file(path)["latents"] for path in (one, other)]
        assert torch.allclose(*latents, atol=1e-4)
    found.trajectory(5).unlink()
    session.sample_rounds(settings)
    assert drawn.sizes[5:] == [1] and len(fused.sizes) == 4


def test_a_decoder_without_memory_takes_fewer(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0 = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model.decode(x0)
    decode = Limited(AutoencoderKL.decode, 2, 1)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda vae, x: decode(vae, x))
    monkeypatch.setattr(model, "_decoding", OnGpu("sample.images_per_call", "auto", model.device))
    found = model.decode(x0)
    assert decode.sizes == [1, 2, 2] and found.equal(expected)


@pytest.mark.parametrize(
    ("dtype", "upcast", "expected"),
    [
        (torch.float32, False, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_the_decoder_runs_in_half_precision_where_it_can(
    tmp_path: Path, dtype: torch.dtype, upcast: bool, expected: torch.dtype
) -> None:
    pipe = make_pipeline(tmp_path)
    pipe.vae.register_to_config(force_upcast=upcast)
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipe.image_processor.postprocess(pipe.vae.decode(x0 / 0.5).sample, "pt")
    model = stable_diffusion.StableDiffusion(pipe, "cpu", dtype)
    assert model.pipe.vae.dtype == expected
    difference = model.decode(x0)[0] / 255 - plain[0].permute(1, 2, 0)
    assert difference.abs().max() < 0.03
