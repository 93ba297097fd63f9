"""How alike two images are, outside a mask."""

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor


def ssim_outside(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    """Mean of the SSIM map (Wang et al. 2004, 7 x 7 windows) over the pixels outside a mask.

    a, b: uint8 (H, W, 3). inside: bool (H, W). NaN where the mask covers everything.
    """
    _, ssim = structural_similarity(a, b, channel_axis=2, data_range=255, full=True)
    outside = ~inside
    return float(ssim.mean(-1)[outside].mean()) if outside.any() else float("nan")


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two whole images."""
    return ssim_outside(a, b, np.zeros(a.shape[:2], bool))


def region(mask: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A mask, (gh, gw) bool, as (H, W) pixels."""
    grid = mask.numpy()
    height, width = size
    return grid.repeat(height // grid.shape[0], 0).repeat(width // grid.shape[1], 1)
