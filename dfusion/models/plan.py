"""Settings to a fusion plan and mask layers, for a given UNet."""

from dfusion.errors import UserError
from dfusion.method.fusion import FusionPlan
from dfusion.settings.plain_text import names_of
from dfusion.settings.schema import Settings
from dfusion.settings.steps import parse_steps
from diffusers_patched import LayerTable


def plan_of(settings: Settings, layers: LayerTable) -> tuple[FusionPlan, frozenset[int]]:
    """The fusion plan and the mask's layers, for a UNet. Raises UserError naming the flag."""
    chosen = {}
    for flag, text in (("fusion", settings.fusion.layers), ("mask", settings.mask.layers)):
        try:
            chosen[flag] = layers.parse(text)
        except ValueError as error:
            raise UserError(f"--config.{flag}.layers: {error}") from error
    grids = {layers.grids[layer] for layer in chosen["mask"]}
    if len(grids) != 1:
        raise UserError(
            f"--config.mask.layers '{settings.mask.layers}': must be layers of one grid, at least "
            f"one; this UNet's grids are {dict(enumerate(layers.grids))}"
        )
    plan = FusionPlan(
        layers=chosen["fusion"],
        steps=parse_steps(settings.fusion.steps, settings.sample.num_steps),
        parts=frozenset(names_of(settings.fusion.parts)),
        masked=settings.fusion.masked,
        merge=settings.mask.merge,
        place=settings.mask.place,
        grids=frozenset(layers.grids),
    )
    return plan, chosen["mask"]
