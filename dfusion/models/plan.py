"""The fusion plan and the mask's layers that settings name, for a given UNet."""

from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Settings
from dfusion.settings.steps import parse_steps
from diffusers_patched import LayerTable


def layers_of(flag: str, text: str, layers: LayerTable) -> frozenset[int]:
    """The layers that a flag names; those of the mask must have one grid. Raises UserError."""
    try:
        chosen = layers.parse(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    if "mask" in flag and len({layers.grids[layer] for layer in chosen}) != 1:
        raise UserError(
            f"{flag} '{text}': must be layers of one grid, at least one; this UNet's grids are "
            f"{dict(enumerate(layers.grids))}"
        )
    return chosen


def plan_of(settings: Settings, layers: LayerTable) -> tuple[FusionPlan, frozenset[int]]:
    """The fusion plan and the mask's layers, for a UNet. Raises UserError naming the flag."""
    plan = FusionPlan(
        layers=layers_of("--config.fusion.layers", settings.fusion.layers, layers),
        steps=parse_steps(settings.fusion.steps, settings.sample.num_steps),
        parts=frozenset(names_of(settings.fusion.parts)),
        masked=settings.fusion.masked,
        merge=settings.mask.merge,
        place=settings.mask.place,
        grids=frozenset(layers.grids),
    )
    return plan, layers_of("--config.mask.layers", settings.mask.layers, layers)
