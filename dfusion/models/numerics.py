"""Process-wide torch switches that affect numerical results; they are set only here."""

import torch

from dfusion.settings.schema import Settings


def set_numerics(settings: Settings) -> None:
    """Set TF32 as the settings say. Called by every process that runs or scores a model."""
    torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32
    torch.backends.cudnn.allow_tf32 = settings.allow_tf32
