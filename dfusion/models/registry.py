"""The families of models, and which of them a model belongs to."""

from dfusion.errors import UserError
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.sd3 import SD3
from dfusion.models.sdxl import SDXL
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.settings.own import own
from dfusion.settings.schema import AUTO

# To add a family, derive a class from DiffusionModel and put it here, or pass it as
# --config.pretrained.family module:Name.
FAMILIES: list[type[DiffusionModel]] = [StableDiffusion, SDXL, SD3]


def family_named(pipeline: object, asked: str, name: str) -> type[DiffusionModel]:
    """The family of a pipeline class, or the one that is asked for.

    name: what an error calls the model. Raises UserError.
    """
    if asked != AUTO:
        return own("pretrained.family", asked, [AUTO])
    known = {family.pipeline.__name__: family for family in FAMILIES}
    if pipeline not in known:
        raise UserError(
            f"{name} is a {pipeline}; supported are {', '.join(known)}, or your own family as "
            "--config.pretrained.family module:Name"
        )
    return known[str(pipeline)]
