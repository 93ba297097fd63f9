"""Switches of torch that change the numbers of a whole process: they are set here and only here."""

import torch

from dfusion.settings.schema import Settings


def set_numerics(settings: Settings) -> None:
    """Same settings, same numbers, in whichever process: for all that load or score a model."""
    torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32
    torch.backends.cudnn.allow_tf32 = settings.allow_tf32
