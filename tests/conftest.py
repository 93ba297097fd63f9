"""Tiny real models: every class is the real one, only small and with random weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dfusion.method.prompts import Item, Prompt
from dfusion.method.sampling import Policy
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.rounds.session import sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import write_json, write_png
from dfusion.training.trainer import train_rounds
from testbed.models.unet import SCHEDULE

torch.set_num_threads(1)  # tiny tensors: a second thread only waits

# Whole words "a", "cat", "dog", "the"; "sandwich" is the two tokens "sand" + "wich</w>".
PROMPTS = ["a cat the sandwich", "the dog"]
REWARD = "tests.rewards:redness"
MERGES = [
    ("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"),
    ("s", "a"), ("n", "d"), ("sa", "nd"), ("w", "i"), ("c", "h</w>"), ("wi", "ch</w>"),
]  # fmt: skip


REAL_FSYNC = os.fsync


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Waiting for the disk guards against power cuts, not against what tests can see."""
    os.fsync = lambda descriptor: None
    yield
    os.fsync = REAL_FSYNC


def make_tokenizer(folder: Path, length: int = 16) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,#-"
    pieces = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in MERGES)]
    vocab = {p: i for i, p in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(["#version: 0.2", *(" ".join(m) for m in MERGES), ""])
    (folder / "merges.txt").write_text(merges)
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=length,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def make_unet() -> UNet2DConditionModel:
    """Attention in down_blocks.0, .1, mid, up_blocks.0, .1: layers 0 … 4, grids 8 4 4 4 8."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def make_pipeline(folder: Path) -> StableDiffusionPipeline:
    tokenizer = make_tokenizer(folder / "tokenizer_files")
    torch.manual_seed(1)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary diffusers folder of the tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    make_pipeline(folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    return StableDiffusion(make_pipeline(tmp_path_factory.mktemp("pipe")), "cpu", torch.float32)


@pytest.fixture
def policy(model: DiffusionModel) -> Policy:
    return Policy(model=model, sampler=model.sampler(6, 1.0), guidance=5.0, seed=3, round=0)


@pytest.fixture
def prompts() -> list[Prompt]:
    """Two prompts of different lengths and numbers of items; thresholds near the maps' values."""
    return [
        Prompt("a cat the sandwich", (Item("cat", 0.06), Item("sandwich", 0.06))),
        Prompt("the dog", (Item("dog", 0.06),)),
    ]


def make_settings(folder: Path, model: Path) -> Settings:
    """A small experiment: two prompts, four images each, four steps, the first one unfused."""
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    items = {PROMPTS[0]: ["cat", 3], PROMPTS[1]: [1]}
    (folder / "items.json").write_text(json.dumps(items))
    s = Settings(seed=5, save_path=str(folder / "data"), exp_name="exp", device="cpu")
    s.prompt_file, s.item_idx_file = str(folder / "prompts.json"), str(folder / "items.json")
    s.pretrained.model = str(model)
    s.sample.num_steps, s.sample.batch_size, s.sample.num_batches_per_epoch = 4, 2, 2
    s.fusion.steps = "3-1"
    s.eval.reward, s.eval.in_process, s.eval.poll_seconds = REWARD, True, 0.05
    return s


@pytest.fixture
def settings(tmp_path: Path, pipeline_folder: Path) -> Settings:
    return make_settings(tmp_path, pipeline_folder)


def small(settings: Settings, rounds: int, name: str) -> Settings:
    """Settings of a quick run of `rounds` rounds at a high rate."""
    chosen = dataclasses.replace(settings, exp_name=name)
    chosen.train = dataclasses.replace(
        settings.train, num_epochs=rounds, learning_rate=1e-2, batch_size=8
    )
    return chosen


@pytest.fixture(scope="session")
def view_data(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """A data folder to look at: a round of the tiny model, two prompts, four images each."""
    folder = tmp_path_factory.mktemp("view")
    sample_rounds(make_settings(folder, pipeline_folder))
    return folder / "data"


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of an experiment's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def grey_round(folder: Path, images: int = 3, reward: str = "redness", **settings: object) -> Round:
    """A round of one prompt with grey images, each lighter than the last; 3 planned or more."""
    experiment = Experiment(folder)
    write_json(experiment.config_file, {"settings": {"eval": {"reward": reward}, **settings}})
    round_ = experiment.round(0)
    round_.write_manifest(0, (Prompt("a cat", (Item("cat"),)),), max(3, images), {})
    for i in range(images):
        write_png(round_.image("images", i), np.full((8, 8, 3), 20 * (i + 1), np.uint8))
    return round_


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """A finished experiment of one trained round; to be copied, not changed."""
    settings = make_settings(tmp_path_factory.mktemp("whole"), pipeline_folder)
    settings.train = dataclasses.replace(settings.train, compare_images=1, batch_size=8)
    return train_rounds(settings)
