"""The testbed's training: its networks are those that are sampled, and it can be resumed."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.settings.schema import Pretrained
from diffusers_patched import AttentionControl, Fusion, Record
from testbed.figures.policy import as_prompts
from testbed.models import exchange, exchange_joint
from testbed.training.diffusion import MODELS, SHARES, Batches, learning_rate, text_tokens, train
from testbed.training.noise import Diffusion, Flow, Noise
from testbed.training.sd3 import SD3
from testbed.training.teacher import HIGHEST, Teacher
from testbed.training.train import commands
from testbed.world.tokens import write_tokenizer
from testbed.world.words import PROMPTS

WEIGHTS = Path(__file__).parents[2] / "testbed" / "weights"
TEXTS = ["a star wearing a hat", "a red and striped moon", "the star on the left of the heart"]


def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(WEIGHTS / "diffusion" / "vae")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SD3, DiffusionModel]:
    """A model in training form with random weights, and what the library loads of it."""
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    model = SD3(write_tokenizer(folder / "tokenizer"))
    for weight in model.parameters():  # a fresh network would do nothing
        weight.data.add_(0.1 * torch.randn_like(weight)).copy_(weight.data.half())
    model.pipeline(model.state_dict(), vae().half()).save_pretrained(folder / "model")
    return model, load_model(Pretrained(model=str(folder / "model")), "cpu", torch.float32)


def state(rows: int) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_sd3_in_training_is_what_the_library_samples(
    trained: tuple[SD3, DiffusionModel],
) -> None:
    """Tokens, maps of items and outputs."""
    model, loaded = trained
    ids, t = model.ids(TEXTS), torch.tensor([900.0, 500.0, 20.0])
    columns, keys = text_tokens(model.first_words, ids.shape[1])
    rows = [PROMPTS.index(text) for text in TEXTS]
    model.plan.columns, model.plan.keys, model.plan.maps = columns[rows], keys[rows], []
    output = model(state(3), t, ids, torch.arange(3))
    for row, prompt in zip(rows, as_prompts(TEXTS), strict=True):
        expected = [item[0] for item in loaded.columns(prompt)]
        assert columns[row, : len(expected)].tolist() == expected
    assert keys[rows].equal(loaded.map_keys(TEXTS))
    own = columns[rows].flatten(1)  # (3, I J)
    layers = frozenset(exchange_joint.POINTING)
    control = AttentionControl(Record(layers, own, keys=keys[rows]))
    theirs, maps = loaded.predict(state(3), t, loaded.encode(TEXTS), None, control=control)
    torch.testing.assert_close(output, theirs, rtol=1e-3, atol=1e-3)
    assert maps is not None
    recorded = torch.stack(model.plan.maps).mean(0).transpose(1, 2)  # (3, I, tokens)
    torch.testing.assert_close(recorded, maps.unflatten(1, (2, 2)).mean(2).flatten(2))


@torch.no_grad()
def test_exchange_in_training_is_fusion_with_the_full_mask(
    trained: tuple[SD3, DiffusionModel],
) -> None:
    model, loaded = trained
    source, t = torch.tensor([0, 1, 0]), torch.tensor(500.0)
    ids = model.ids(TEXTS)
    model.plan.source, model.plan.early = source, True
    output = model(state(3), t.expand(3), ids, torch.arange(3))
    model.plan.source = None
    parts = frozenset({"self_k", "self_v"})
    fusion = Fusion(source, loaded.layers.parse("all"), None, parts, frozenset(loaded.layers.grids))
    control = AttentionControl(fusions=(fusion,))
    theirs, _ = loaded.predict(state(3), t, loaded.encode(TEXTS), None, control=control)
    torch.testing.assert_close(output, theirs, rtol=1e-3, atol=1e-3)
    plain, _ = loaded.predict(state(3), t, loaded.encode(TEXTS), None)
    assert not torch.allclose(output[2], plain[2], atol=1e-2)


@pytest.mark.parametrize("noise", [Diffusion(), Flow()])
def test_what_is_wanted_leads_to_the_aim(noise: Noise) -> None:
    torch.manual_seed(0)
    shown, aim, _, _ = exchange.invite(state(4), noise.times(4), torch.arange(4), 2)
    t = noise.times(4).clamp(min=100)
    x = noise.add(shown, t)
    wanted = noise.wanted(x, aim, t)
    if isinstance(noise, Flow):
        found = x - (t / 1000).view(-1, 1, 1, 1) * wanted
    else:
        signal = noise.signal[t].view(-1, 1, 1, 1)
        found = (x - (1 - signal).sqrt() * wanted) / signal.sqrt()
    torch.testing.assert_close(found, aim, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(WEIGHTS / "diffusion")


@torch.no_grad()
def test_teacher_reads_flow_matching_as_its_own_scheduler_would(teacher: Teacher) -> None:
    """Against diffusers: its noised latents at these ratios, and the scene DDIM reads there."""
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "diffusion")
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(1000)
    torch.manual_seed(0)
    scene, noise, texts = 0.5 * state(3), torch.randn(3, 4, 16, 16), [*TEXTS[:2], ""]
    prompt = torch.tensor([*(PROMPTS.index(text) for text in TEXTS[:2]), len(PROMPTS)])
    context, _ = pipe.encode_prompt(texts, "cpu", 1, False)
    for step in (900, 300):
        sigma = teacher.sigmas[step]
        flow = (1 - sigma) * scene + sigma * noise
        found = teacher.scenes(flow, torch.full((3,), 1000 * float(sigma)), prompt)
        latent = scheduler.add_noise(scene, noise, torch.tensor([step]))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = pipe.unet(latent, step, context).sample
        expected = scheduler.step(predicted.float(), step, latent).pred_original_sample
        assert (found - expected).square().mean() < 1e-3  # the UNet's rounding, in bfloat16


def test_guests_learn_what_the_teacher_sees_in_their_hosts(
    teacher: Teacher, tmp_path: Path
) -> None:
    latents, prompts = torch.randn(96, 4, 16, 16), np.arange(96)
    regions = torch.zeros(4, 2, 8, 8, dtype=torch.uint8)
    model = SD3(write_tokenizer(tmp_path))
    torch.manual_seed(0)
    batch = Batches(latents, prompts, regions, model, 64, teacher=teacher).draw(24, True)
    sigma = (batch.t / 1000).view(-1, 1, 1, 1)
    aims = batch.x - sigma * batch.wanted
    torch.testing.assert_close(aims[40:], aims[:24], rtol=1e-3, atol=1e-3)
    noisy = batch.t >= HIGHEST  # there, scenes themselves
    distance = (aims[:40, None] - latents).square().mean((2, 3, 4)).min(1).values
    assert noisy[:40].any()
    assert ((distance < 1e-4) == noisy[:40]).all()


@pytest.mark.parametrize("name", MODELS)
def test_training_saves_and_goes_on(name: str, tmp_path: Path) -> None:
    count = 32
    prompts = np.arange(count)
    np.savez(tmp_path / "pool.npz", prompts=prompts, images=np.zeros((count, 1), np.uint8))
    save_file({"latents": torch.randn(count, 4, 16, 16)}, tmp_path / "latents.safetensors")
    regions = torch.full((8, 2, 8, 8), 255, dtype=torch.uint8)
    save_file({"regions": regions}, tmp_path / "regions.safetensors")
    args = argparse.Namespace(
        model=name,
        pool=tmp_path / "pool.npz",
        latents=None,
        regions=tmp_path / "regions.safetensors",
        vae=WEIGHTS / "diffusion" / "vae",
        work=tmp_path,
        out=tmp_path / "model",
        start=WEIGHTS / "diffusion",
        steps=2,
        confuse_from=1,
        falling=0.6,
        batch=4,
        lr=1e-3,
        seed=2,
        shares=SHARES,
        teacher=WEIGHTS / "diffusion" if name == "sd3" else None,
    )
    train(args)
    first = torch.load(tmp_path / "diffusion.pt", weights_only=True)
    args.steps = 4  # the last step's rate is 0
    train(args)
    second = torch.load(tmp_path / "diffusion.pt", weights_only=True)
    assert second["step"] == 4
    assert max(own["step"] for own in second["optimisers"][0]["state"].values()) == 4
    denoiser = {k for k, v in first["model"].items() if not v.equal(second["model"][k])}
    assert denoiser and not any(key.startswith("text.") for key in denoiser)  # frozen from step 2
    load_model(Pretrained(model=str(args.out)), "cpu", torch.float32)


def test_a_decay_can_be_appended() -> None:
    """As long as the end is far, the rate is flat; a nearer end then begins the cosine."""
    assert learning_rate(5000, 100_000, 2e-3, 0.1) == 2e-3
    assert learning_rate(5000, 6000, 2e-3, 1 / 6) == 2e-3
    assert learning_rate(5500, 6000, 2e-3, 1 / 6) == pytest.approx(1e-3)
    assert learning_rate(6000, 6000, 2e-3, 1 / 6) == pytest.approx(0)


def test_every_stage_names_modules_that_exist() -> None:
    for stage in commands(Path("work"), Path("weights")).values():
        for module, *_ in stage:
            assert importlib.util.find_spec(f"testbed.{module}") is not None, module
