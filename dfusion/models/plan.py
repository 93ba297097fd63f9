"""The fusion plan and the mask's layers that settings name, for a given UNet."""

from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan
from dfusion.method.sampler import Sampler
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Fusion, Mask, Settings
from dfusion.settings.steps import fused_indices, parse_steps
from diffusers_patched import LayerTable

FLAG = "--config.{}.{}"  # a group's name and a setting's


def layers_of(flag: str, text: str, layers: LayerTable) -> frozenset[int]:
    """The layers that a flag names. Raises UserError."""
    try:
        return layers.parse(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def mask_layers_of(flag: str, text: str, layers: LayerTable) -> frozenset[int]:
    """The layers that give the mask, which must have one grid. Raises UserError."""
    chosen = layers_of(flag, text, layers)
    if len({layers.grids[layer] for layer in chosen}) != 1:
        raise UserError(
            f"{flag} '{text}': must be layers of one grid, at least one; this model's grids are "
            f"{dict(enumerate(layers.grids))}"
        )
    return chosen


def fusion_plan(
    fusion: Fusion, mask: Mask, num_steps: int, layers: LayerTable, flag: str = FLAG
) -> FusionPlan:
    """What to fuse where and when. flag: how errors write a setting. Raises UserError."""
    try:
        steps = parse_steps(fusion.steps, num_steps)
    except ValueError as error:
        raise UserError(f"{flag.format('fusion', 'steps')}: {error}") from error
    return FusionPlan(
        layers=layers_of(flag.format("fusion", "layers"), fusion.layers, layers),
        steps=steps,
        parts=frozenset(names_of(fusion.parts)),
        masked=fusion.masked,
        merge=mask.merge,
        place=mask.place,
        grids=frozenset(layers.grids),
        kind=fusion.kind,
        own_text=fusion.text == "own",
    )


def sampler_of(settings: Settings, model: DiffusionModel) -> Sampler:
    """The model's denoising process as the settings ask. Raises UserError."""
    total = settings.sample.num_steps
    sampler = model.sampler(total, settings.sample.eta)
    if settings.sample.noise == "fused":
        sampler = sampler.quiet(set(range(total)) - fused_indices(settings.fusion.steps, total))
    if not sampler.trainable.any():
        raise UserError("--config.sample.noise fused: no step is fused; nothing could be trained")
    return sampler


def plan_of(settings: Settings, layers: LayerTable) -> tuple[FusionPlan, frozenset[int]]:
    """The fusion plan and the mask's layers, for a UNet. Raises UserError naming the flag."""
    plan = fusion_plan(settings.fusion, settings.mask, settings.sample.num_steps, layers)
    return plan, mask_layers_of(FLAG.format("mask", "layers"), settings.mask.layers, layers)
