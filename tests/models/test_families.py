"""Every family against stock diffusers: network calls, trajectories, fusion, LoRA, training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from dfusion.api.pipeline import DFusionPipeline
from dfusion.api.samples import adopt
from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.prompts import Item, Prompt
from dfusion.method.sampling import Policy, Trajectory, sample
from dfusion.models import lora
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.settings.schema import Pretrained
from tests.conftest import make_pipeline
from tests.tiny import make_sd3, make_sdxl

PROMPT = Prompt("a cat the sandwich", (Item("cat"), Item("sandwich")))
MAKERS: dict[str, Callable[[Path], Any]] = {
    "sd": make_pipeline,
    "sdxl": make_sdxl,
    "sd3": make_sd3,
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](where).save_pretrained(where / "model")
    return where / "model"


def load(folder: Path) -> DiffusionModel:
    return load_model(Pretrained(model=str(folder)), "cpu", torch.float32)


def stock_of(folder: Path) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        config = {**pipe.scheduler.config, "clip_sample": False, "set_alpha_to_one": False}
        pipe.scheduler = DDIMScheduler.from_config(config)
    return pipe


def policy_of(model: DiffusionModel, guidance: float | None = 5.0) -> Policy:
    return Policy(model=model, sampler=model.sampler(6, 1.0), guidance=guidance, seed=3, round=0)


def fused(
    policy: Policy, base: Trajectory, reference: Trajectory, **how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    plan = FusionPlan(
        layers=policy.model.layers.names["all"],
        steps=frozenset({4, 3, 2, 1}),
        grids=frozenset(policy.model.layers.grids),
    )
    (target,) = fuse(policy, replace(plan, **how), [Source(1, PROMPT, base, reference)])
    return target.latents, target.masks


def walked(policy: Policy) -> tuple[Trajectory, Trajectory]:
    layer = frozenset({len(policy.model.layers.blocks) // 2})
    reference, base = sample(policy, [0, 1], [PROMPT, PROMPT], layer)
    return base, reference


def test_a_step_without_control_is_stock(folder: Path) -> None:
    """The network and, through `encode`, everything that a stock pipeline gives it."""
    model, stock = load(folder), stock_of(folder)
    seen: dict[str, Any] = {}

    def spy(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, sample=kwargs.get("hidden_states", args[0] if args else None))
        seen.setdefault("timestep", args[1] if len(args) > 1 else None)

    network = getattr(stock, model.network_name)
    network.register_forward_pre_hook(spy, with_kwargs=True)
    found = {}
    network.register_forward_hook(lambda m, a, out: found.update(out=out[0]))
    height, width = model.size
    stock(
        PROMPT.text,
        num_inference_steps=1,
        guidance_scale=5.0,
        height=height,
        width=width,
        output_type="latent",
    )
    x = seen["sample"][:1]
    uncond, text = found["out"].chunk(2)
    with torch.no_grad():
        cond, timestep = model.encode([PROMPT.text]), seen["timestep"].reshape(-1)[0]
        ours, _ = model.predict(x, timestep, cond, 5.0)
    # Not to the bit: on some CPUs a kernel's rounding depends on where its inputs lie in memory.
    torch.testing.assert_close(ours, uncond + 5.0 * (text - uncond), rtol=0, atol=1e-5)


def test_a_trajectory_is_the_stock_pipelines(folder: Path) -> None:
    """All of it, by DDIM's scheduler step or Euler's, which have no noise here."""
    model, stock = load(folder), stock_of(folder)
    flows = model.network_name == "transformer"
    sampler = model.sampler(6, 0.5)
    policy = replace(policy_of(model), sampler=sampler.quiet(range(6)))
    x_T, _ = policy.noise([1])
    _, trajectory = sample(policy, [0, 1], [PROMPT, PROMPT], frozenset({2}))
    theirs = stock(
        PROMPT.text,
        latents=x_T,
        **({"sigmas": [1 - n / 6 for n in range(6)]} if flows else {"num_inference_steps": 6}),
        guidance_scale=5.0,
        height=model.size[0],
        width=model.size[1],
        output_type="latent",
    )[0]
    scale = theirs.abs().max()
    assert torch.allclose(trajectory.latents[-1] / scale, theirs[0] / scale, atol=1e-4)


def test_images_are_the_stock_pipelines(folder: Path) -> None:
    model, stock = load(folder), stock_of(folder)
    x0 = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    config = stock.vae.config
    latents = x0 / config.scaling_factor + (config.shift_factor or 0.0)
    with torch.no_grad():
        pixels = stock.image_processor.postprocess(stock.vae.decode(latents).sample, "np")
    assert abs(model.decode(x0).numpy() - pixels * 255).max() <= 0.51


def test_columns_are_the_items_tokens(folder: Path) -> None:
    """The tokens in an item's columns, put together, are the item."""
    model = load(folder)
    found = model.columns(PROMPT)
    clip = model.pipe.tokenizer(PROMPT.text).input_ids
    told = [
        model.pipe.tokenizer.decode([clip[c] for c in item[0] if c < min(77, len(clip))])
        for item in found
    ]
    assert [text.replace(" ", "") for text in told] == ["cat", "sandwich"]
    if model.network_name == "transformer":
        t5 = model.pipe.tokenizer_3(PROMPT.text).input_ids
        ours = [[t5[c - 77] for c in item[0] if c >= 77] for item in found]
        assert [model.pipe.tokenizer_3.decode(tokens) for tokens in ours] == ["cat", "sandwich"]
        keys = model.map_keys([PROMPT.text])
        assert keys is not None
        assert all(keys[0, c] for item in found for c in item[0])
        assert keys[0, 0] == 0 and keys.sum() == len(clip) - 2 + len(t5) - 1


def test_identities_of_fusion(folder: Path) -> None:
    policy = policy_of(load(folder))
    base, reference = walked(policy)
    own, _ = fused(policy, base, base)
    assert own.equal(base.latents)  # fused with itself
    nowhere = replace(base, maps=torch.zeros_like(base.maps))
    empty, masks = fused(policy, base, replace(reference, maps=nowhere.maps), merge="xor")
    assert masks[2:].sum() == 0  # a constant map passes everywhere, twice: XOR leaves nothing
    assert torch.allclose(empty, base.latents, atol=1e-4)
    target, masks = fused(policy, base, reference, merge="or")
    assert 0 < masks[2:].float().mean() < 1
    assert target[:3].equal(base.latents[:3])  # nothing is fused before the first fused step
    assert not torch.allclose(target, base.latents, atol=1e-3)
    assert not torch.allclose(target, reference.latents, atol=1e-3)


def test_maps_are_a_share_of_the_attention(folder: Path) -> None:
    policy = policy_of(load(folder))
    base, _ = walked(policy)
    assert base.maps.shape[1] == 2 and (base.maps > 0).all() and (base.maps.sum(1) <= 1).all()
    of_all, _ = walked(replace(policy, maps="all"))
    assert of_all.latents.equal(base.latents)
    if policy.model.network_name == "transformer":  # image tokens and padding take a part
        assert (of_all.maps < base.maps).all() and (of_all.maps > 0).all()
    else:
        assert of_all.maps.equal(base.maps)


def test_a_lora_loads_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    model, stock = load(folder), stock_of(folder)
    before = model.fingerprint()
    for parameter in lora.add(model.network, 2, 4, TARGETS, seed=0):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    assert model.fingerprint() != before
    lora.save(model.network, model.network_name, tmp_path)
    stock.load_lora_weights(tmp_path)
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = model.encode([PROMPT.text])
    with torch.no_grad():
        ours, theirs = (
            model.call(network, x, torch.tensor(501.0), cond, None)[0]
            for network in (model.network, _Plain(getattr(stock, model.network_name)))
        )
    assert torch.allclose(ours, theirs, atol=1e-5)


class _Plain(torch.nn.Module):
    """A stock network under our networks' signature."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, control: None, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)


@pytest.mark.parametrize("guidance", [None, 5.0])
def test_the_api_trains_every_family(folder: Path, guidance: float | None) -> None:
    """Ratio 1 before the first update: the policy that trains is the one that sampled."""
    pipe = DFusionPipeline(load(folder))
    middle = str(len(pipe.model.layers.blocks) // 2)
    how = {"num_steps": 4, "guidance_scale": guidance, "mask_layers": middle}
    made = pipe(
        PROMPT.text, ["cat", "sandwich"], base_seed=1, reference_seed=2, fusion_layers="all", **how
    )
    before = pipe.model.fingerprint()
    scored = replace(
        made,
        score=2.0,
        base_sample=replace(made.base_sample, score=0.0),
        reference_sample=replace(made.reference_sample, score=1.0),
    )
    rows = pipe.trainer(learning_rate=1e-3).train_on(adopt([scored]))
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert pipe.model.fingerprint() != before
