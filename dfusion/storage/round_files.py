"""Reading and writing a round's samples and targets: trajectories, pictures, masks."""

import numpy as np
import torch
from torch import Tensor

from dfusion.method import pairing
from dfusion.method.fusion import Source, Target
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import Trajectory
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors, write_bytes, write_png, write_tensors


def read_trajectory(round_: Round, index: int) -> Trajectory:
    """A stored sample of a round."""
    tensors = read_tensors(round_.trajectory(index))
    return Trajectory(tensors["latents"], tensors["maps"])


def read_source(round_: Round, pair: pairing.Pair, prompts: list[Prompt]) -> Source:
    """The input of fusion for one pair. prompts: those of the round's samples."""
    base, reference = (read_trajectory(round_, i) for i in (pair.base, pair.reference))
    return Source(pair.base, prompts[pair.base], base, reference)


def write_sample(round_: Round, i: int, trajectory: Trajectory | None, image: np.ndarray) -> None:
    """Write a sample's image, uint8 (H, W, 3), and, unless it is None, its trajectory."""
    if trajectory is not None:
        tensors = {"latents": trajectory.latents, "maps": trajectory.maps}
        write_tensors(round_.trajectory(i), tensors, {"index": i})
    write_png(round_.image("images", i), image)


def write_target(
    round_: Round,
    p: int,
    pair: pairing.Pair,
    source: Source,
    target: Target,
    image: np.ndarray,
) -> None:
    """Write a target and the pictures of its pair, the target's own, (H, W, 3), last."""
    round_.inversion(p).unlink(missing_ok=True)  # left from an older target
    for kind, index in (("base_images", pair.base), ("reference_images", pair.reference)):
        write_bytes(round_.image(kind, p), round_.image("images", index).read_bytes())
    write_png(round_.image("masks", p), mask_sheet(target.masks, source.reference.maps))
    write_tensors(
        round_.target(p),
        {"latents": target.latents, "masks": target.masks},
        {"base": pair.base, "reference": pair.reference},
    )
    write_png(round_.image("target_images", p), image)


def mask_sheet(masks: Tensor, maps: Tensor) -> np.ndarray:
    """A picture of masks and item maps over time, uint8 ((1 + I) gh, T gw).

    Left to right t = T … 1. The top row is the mask; below it one row per item, each item's maps
    scaled to their own range.
    masks: (T, gh, gw) bool, maps: (T, I, gh, gw).
    """
    low = maps.float().amin((0, 2, 3), keepdim=True)
    high = maps.float().amax((0, 2, 3), keepdim=True)
    scaled = (maps.float() - low) / (high - low).clamp(min=1e-8)
    tiles = torch.cat([masks[:, None].float(), scaled], 1)  # (T, 1 + I, gh, gw)
    sheet = tiles.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    return (sheet * 255).round().to(torch.uint8).numpy()
