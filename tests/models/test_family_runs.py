"""Whole runs, from sampling to a trained checkpoint, of every family; image sizes; refusals."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from dfusion import DFusionPipeline, Sample
from dfusion.errors import UserError
from dfusion.models.loading import load_model
from dfusion.rounds.session import sample_rounds
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import Mask, Pretrained, Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_tensors
from dfusion.training.trainer import train_rounds
from testbed.models.unet import SCHEDULE
from tests.conftest import PROMPTS, make_pipeline, metrics_of, small
from tests.models.toy import ToyNetwork, ToyPipeline
from tests.tiny import make_sd3, make_sdxl, make_vae


def made(make: Callable[[Path], Any], folder: Path) -> Path:
    make(folder).save_pretrained(folder / "model")
    return folder / "model"


def make_toy(folder: Path) -> ToyPipeline:
    torch.manual_seed(4)
    schedule = {**SCHEDULE, "steps_offset": 1, "clip_sample": False}
    return ToyPipeline(ToyNetwork(), make_vae(4), DDIMScheduler(**schedule))


def trained(settings: Settings, model: Path, **change: Any) -> Path:
    """The folder of a run of one round, with masks from layer 0 and fusion in all layers."""
    run = small(settings, 1, "run")
    run.pretrained = Pretrained(model=str(model))
    run.mask.layers, run.fusion.layers = "0", "all"
    for name, value in change.items():
        group, key = name.split("__")
        setattr(getattr(run, group), key, value)
    return train_rounds(run)


FAMILIES = [
    (make_sdxl, {}),
    (make_sdxl, {"sample__height": 24, "sample__width": 16}),
    (make_sd3, {}),
    (make_sd3, {"sample__noise": "fused", "sample__height": 16, "sample__width": 24}),
    (make_sd3, {"fusion__text": "own", "train__tune": "full"}),
    (make_toy, {"pretrained__family": "tests.models.toy:Toy", "train__lora_targets": "to_q,to_v"}),
]


@pytest.mark.parametrize(("make", "change"), FAMILIES)
def test_a_run_of_every_family(
    settings: Settings, tmp_path: Path, make: Callable[[Path], Any], change: dict[str, Any]
) -> None:
    if make is make_toy:  # its words are whole, and its items are words
        prompts = ["a cat the sandwich", "the dog"]
        items = {prompts[0]: ["cat", "sandwich"], prompts[1]: ["dog"]}
        Path(settings.item_idx_file).write_text(json.dumps(items))
    folder = trained(settings, made(make, tmp_path), **change)
    updates = [row for row in metrics_of(folder) if row["kind"] == "update"]
    assert updates[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert updates[-1]["grad_norm"] > 0
    (checkpoint,) = (folder / "checkpoints").iterdir()
    card = (checkpoint / "README.md").read_text()
    assert ("flow matching" if make is make_sd3 else "DDIM") in card
    if make is not make_toy and change.get("train__tune") != "full":
        stock = DiffusionPipeline.from_pretrained(tmp_path / "model")
        stock.load_lora_weights(checkpoint)
        assert stock.get_active_adapters()


def test_the_api_makes_of_a_transformer_what_the_commands_make(
    settings: Settings, tmp_path: Path
) -> None:
    """What only joint attention has: which keys maps are shares of, and what text tokens read."""
    model = made(make_sd3, tmp_path)
    settings.pretrained = Pretrained(model=str(model))
    settings.mask = Mask(layers="0", maps="all")
    settings.fusion.layers, settings.fusion.text = "all", "own"
    round_ = Experiment(sample_rounds(settings)).round(0)
    pipe, how = DFusionPipeline.from_pretrained(str(model)), {"num_steps": 4, "mask_layers": "0"}
    items = {PROMPTS[0]: ["cat", 3], PROMPTS[1]: [1]}

    def drawn(maps: Any = "all") -> list[Sample]:
        return pipe.sample(PROMPTS, items, 5, images_per_prompt=4, mask_maps=maps, **how)

    def target(text: Any) -> Tensor:
        samples, first = drawn(), (round_.pairs() or ())[0]
        both = [(samples[first.base], samples[first.reference])]
        plan = {"fusion_layers": "all", "fusion_steps": "3-1", "fusion_text": text}
        return pipe.fuse(both, **plan)[0].target_latents

    maps = read_tensors(round_.trajectory(0))["maps"]
    torch.testing.assert_close(drawn()[0].item_maps, maps, rtol=0, atol=1e-5)
    assert not torch.allclose(drawn("prompt")[0].item_maps, maps, rtol=0, atol=1e-3)
    latents = read_tensors(round_.target(0))["latents"]
    torch.testing.assert_close(target("own"), latents, rtol=0, atol=3e-5)
    assert not torch.allclose(target("fused"), latents, rtol=0, atol=1e-4)


def test_an_image_has_the_size_that_flags_ask_for(settings: Settings, tmp_path: Path) -> None:
    model = made(make_pipeline, tmp_path)
    found = load_model(Pretrained(model=str(model)), "cpu", torch.float32, (24, 16))
    assert found.latent_shape == (4, 12, 8)
    assert found.layers.grids == ((12, 8), (6, 4), (6, 4), (6, 4), (12, 8))
    assert found.decode(torch.zeros(1, 4, 12, 8)).shape == (1, 24, 16, 3)
    assert load_model(Pretrained(model=str(model)), "cpu", torch.float32, (0, 24)).size == (16, 24)
    with pytest.raises(UserError, match=r"^--config.sample.height 25: .* multiple of 2; use 24"):
        load_model(Pretrained(model=str(model)), "cpu", torch.float32, (25, 16))


def test_v_prediction_runs(settings: Settings, tmp_path: Path) -> None:
    """The same weights under another reading give other images, and train."""
    model = made(make_pipeline, tmp_path)
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    folder = trained(settings, model)
    assert metrics_of(folder)[-1]["round"] == 0


def without_t5(folder: Path) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    path.write_text(json.dumps(index))
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)


def test_sd3_without_t5(settings: Settings, tmp_path: Path) -> None:
    model = made(make_sd3, tmp_path)
    without_t5(model)
    found = load_model(Pretrained(model=str(model)), "cpu", torch.float32)
    assert found.encode(["the dog"]).tokens.shape == (1, 77 + 256, 48)
    assert (found.encode(["the dog"]).tokens[:, 77:] == 0).all()
    trained(settings, model)


@pytest.mark.parametrize("make", [make_sdxl, make_sd3])
def test_a_lora_of_another_family_is_refused(
    settings: Settings, tmp_path: Path, pipeline_folder: Path, make: Callable[[Path], Any]
) -> None:
    run = small(settings, 1, "first")
    folder = train_rounds(run)
    pretrained = Pretrained(
        model=str(made(make, tmp_path)), lora=str(folder / "checkpoints" / "epoch0")
    )
    with pytest.raises(UserError, match="^--config.pretrained.lora: .* give a LoRA trained on it"):
        load_model(pretrained, "cpu", torch.float32)


def test_layers_of_a_unet_are_refused_in_a_transformer(settings: Settings, tmp_path: Path) -> None:
    run = dataclasses.replace(settings, exp_name="run")
    run.pretrained = Pretrained(model=str(made(make_sd3, tmp_path)))
    with pytest.raises(UserError, match="'mid' is no layer: use numbers, ranges or all, dual"):
        train_rounds(run)
    assert not (Path(run.save_path) / "run" / "config.json").exists()


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_presets_name_what_a_model_has(name: str) -> None:
    settings = PRESETS[name]()
    assert settings.pretrained.model.startswith("stabilityai/")
