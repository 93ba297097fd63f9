"""Model folders, LoRA files and checkpoints that are not what they should be: one line each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfusion.errors import UserError
from dfusion.models.loading import load_model
from dfusion.rounds.session import sample_rounds
from dfusion.settings.schema import Pretrained, Settings
from dfusion.training.trainer import train_rounds
from tests.conftest import small

Damage = Callable[[Path], object]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


def edit(name: str, **change: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return damage


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def tensors(name: str, change: Callable[[dict[str, torch.Tensor], str], object]) -> Damage:
    """Change the first tensor of a file."""

    def damage(folder: Path) -> None:
        found = load_file(folder / name)
        change(found, min(found))
        save_file(found, folder / name)

    return damage


def lacks(found: dict[str, torch.Tensor], name: str) -> None:
    del found[name]


def nan(found: dict[str, torch.Tensor], name: str) -> None:
    found[name] = found[name] * torch.nan


def reshaped(found: dict[str, torch.Tensor], name: str) -> None:
    found[name] = torch.zeros(3, 3)


NO_ATTENTION = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
MODELS: list[tuple[str, Damage, str]] = [
    ("index of another form", text("model_index.json", "[]"), "is not a JSON object"),
    ("index cut", text("model_index.json", "{"), "model_index.json cannot be read"),
    ("index nested", text("model_index.json", "[" * 99_999), "nested too deep"),
    ("another pipeline", edit("model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline"),
    ("another UNet", edit("model_index.json", unet=["diffusers", "UNet1DModel"]), "as unet"),
    ("no UNet named", edit("model_index.json", unet=None), "has None as unet"),
    *(
        (f"no {part}", gone(part), f"{part}.* cannot be read")
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    ),
    *((f"no {name}", gone(name), "no .safetensors weights") for name in (UNET, VAE, TEXT)),
    *((f"{name} cut", cut(name), "is damaged") for name in (UNET, VAE, TEXT)),
    *((f"{name} empty", text(name, ""), "is damaged") for name in (UNET, TEXT)),
    *((f"{name} lacks", tensors(name, lacks), "lacks ") for name in (UNET, VAE, TEXT)),
    *((f"{name} NaN", tensors(name, nan), "has NaN or Inf in") for name in (UNET, VAE, TEXT)),
    *((f"{name} reshaped", tensors(name, reshaped), "does not load") for name in (UNET, TEXT)),
    ("inpainting", edit("unet/config.json", in_channels=9), "takes 9 channels"),
    ("flow", edit(SCHEDULER, prediction_type="flow_prediction"), "predicts flow_prediction"),
    ("another schedule", edit(SCHEDULER, beta_schedule="odd"), "odd is not implemented"),
    ("schedule of text", edit(SCHEDULER, beta_start="x"), "does not load"),
    ("schedule listed", text(SCHEDULER, "[]"), "is not a JSON object"),
    ("UNet config cut", text("unet/config.json", "{"), "unet/config.json cannot be read"),
    ("UNet block unknown", edit("unet/config.json", down_block_types=["No"] * 2), "does not load"),
    ("UNet without attention", edit("unet/config.json", **NO_ATTENTION), "no attention|not load"),
    ("SDXL's UNet", edit("unet/config.json", addition_embed_type="text_time"), "than a prompt"),
    ("class-conditional", edit("unet/config.json", class_embed_type="timestep"), "than a prompt"),
    ("two models", edit("unet/config.json", cross_attention_dim=48), "parts of two models"),
    ("size of text", edit("unet/config.json", sample_size="8"), "sample_size '8'"),
    ("VAE of 9 channels", edit("vae/config.json", latent_channels=9), "channels"),
    ("VAE of no scale", edit("vae/config.json", scaling_factor=0), "scaling_factor 0"),
    ("tokenizer cut", text("tokenizer/tokenizer.json", "{"), "does not load"),
]


@pytest.mark.parametrize(("damage", "message"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_models(settings: Settings, tmp_path: Path, damage: Damage, message: str) -> None:
    """Through the library call behind run_sample.py; nothing is written."""
    folder = tmp_path / "model"
    shutil.copytree(settings.pretrained.model, folder)
    damage(folder)
    settings.pretrained.model = str(folder)
    with pytest.raises(UserError, match=message) as caught:
        sample_rounds(settings)
    refused(str(caught.value), "--config.pretrained.model", settings)


def refused(line: str, flag: str, settings: Settings) -> None:
    """One line that names the flag or file and a remedy; no sample, no config."""
    assert flag in line and line.isprintable() and "; " in line
    folder = Path(settings.save_path) / settings.exp_name
    assert not [p for p in folder.rglob("*") if p.is_file() and p.name != ".run.lock"]


LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora"
A, B = f"{LAYER}_A.weight", f"{LAYER}_B.weight"
LORAS: list[tuple[str, dict[str, torch.Tensor] | str | None]] = [
    ("absent", None),
    ("empty", ""),
    ("junk", "junk" * 99),
    ("no layers", {"a": torch.zeros(2)}),
    ("another model's", {A: torch.zeros(2, 999), B: torch.zeros(999, 2)}),
    ("half", {A: torch.zeros(2, 16)}),
    ("NaN", {A: torch.full((2, 16), torch.nan), B: torch.zeros(16, 2)}),
]


@pytest.mark.parametrize(("name", "content"), LORAS, ids=[name for name, _ in LORAS])
def test_loras(
    pipeline_folder: Path, tmp_path: Path, name: str, content: dict[str, torch.Tensor] | str | None
) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        save_file(content, path)
    with pytest.raises(UserError) as caught:
        load_model(Pretrained(model=str(pipeline_folder), lora=str(tmp_path)), "cpu", torch.float32)
    line = str(caught.value)
    assert line.startswith(f"--config.pretrained.lora: '{tmp_path}'") and line.isprintable()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Settings:
    """One round of training, finished; another one may follow."""
    from tests.conftest import make_settings

    settings = small(make_settings(tmp_path_factory.mktemp("t"), pipeline_folder), 1, "exp")
    train_rounds(settings)
    return replace(settings, train=replace(settings.train, num_epochs=2))


STATE, LORA = "state.json", "pytorch_lora_weights.safetensors"
CHECKPOINTS: list[tuple[str, Damage, str]] = [
    ("state cut", text(STATE, "{"), "state.json: not valid JSON"),
    ("state of another version", edit(STATE, schema=2), "state.json: of schema version 2, not 1"),
    ("state without a version", text(STATE, "{}"), "state.json: of schema version None"),
    ("state of another round", edit(STATE, round=7), "state.json: is of round 7, not 0"),
    ("state without a round", edit(STATE, round=None), "state.json: lacks round"),
    ("no LoRA", gone(LORA), f"{LORA}: damaged"),
    ("LoRA cut", cut(LORA), f"{LORA}: damaged"),
    ("LoRA empty", text(LORA, ""), f"{LORA}: damaged"),
    ("LoRA lacks a layer", tensors(LORA, lacks), "does not fit"),
    ("no optimiser", gone("optimiser.safetensors"), "optimiser.safetensors: damaged"),
    ("optimiser cut", cut("optimiser.safetensors"), "optimiser.safetensors: damaged"),
    ("optimiser edited", tensors("optimiser.safetensors", reshaped), "not as it was written"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS]
)
def test_checkpoints(trained: Settings, tmp_path: Path, damage: Damage, message: str) -> None:
    """Named before anything is sampled; the remedy is in the line."""
    shutil.copytree(trained.save_path, tmp_path / "data")
    settings = replace(trained, save_path=str(tmp_path / "data"))
    folder = tmp_path / "data" / "exp"
    damage(folder / "checkpoints" / "epoch0")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        train_rounds(settings)
    assert str(caught.value).isprintable() and "; " in str(caught.value)
    assert sorted(folder.rglob("*")) == before


CONFIGS: list[tuple[str, Damage, str]] = [
    ("cut", text("config.json", "{"), "config.json: not valid JSON"),
    ("another version", edit("config.json", schema=9), "config.json: of schema version 9, not 1"),
    ("no settings", edit("config.json", settings=None), "not laid out as settings are"),
    ("unknown setting", edit("config.json", settings={"new": 1}), "no setting 'new'"),
    ("wrong type", edit("config.json", settings={"seed": "5"}), "seed '5': must be a whole number"),
    ("wrong group", edit("config.json", settings={"train": 3}), "'train' is not laid out"),
    ("other seed", edit("config.json", settings={"seed": 6}), "begun with another config: .*seed"),
    ("metrics cut", text("metrics.jsonl", '{"round"'), "metrics.jsonl: line 1 is no row"),
    (
        "metrics version",
        text("metrics.jsonl", '{"round": 0, "schema": 2}'),
        "version 2, not 1",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS]
)
def test_an_experiments_own_files(
    trained: Settings, tmp_path: Path, damage: Damage, message: str
) -> None:
    shutil.copytree(trained.save_path, tmp_path / "data")
    damage(tmp_path / "data" / "exp")
    with pytest.raises(UserError, match=message):
        train_rounds(replace(trained, save_path=str(tmp_path / "data")))
