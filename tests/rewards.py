"""A reward of one's own, as `--config.eval.reward tests.rewards:redness` plugs it in."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def redness(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """Mean of the red channel, 0 … 1."""
    return np.array([np.asarray(image)[..., 0].mean() / 255 for image in images])
