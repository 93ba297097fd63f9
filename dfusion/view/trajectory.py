"""Stored trajectories as pictures, without loading a model.

The network's prediction x̂_0 at a step follows from two neighbouring states and the noise between
them, which the seed reproduces: the mean of x_{t-1} is linear in x̂_0 and x_t. In place of the VAE,
a least-squares fit on the round's own final latents and PNGs turns a latent, its neighbours and its
products into a patch of pixels.
"""

import io
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.ddim import ddim
from dfusion.method.noise import OTHER, noises
from dfusion.report.rounds import present
from dfusion.settings.steps import first_fused
from dfusion.storage.experiment import SCORED, Round
from dfusion.storage.files import read_tensors, stamp
from dfusion.view.folders import NotThereError, why_not

TILE = 128  # pixels of a step's picture, at most (unless the latent itself is larger)
FITTED = 16  # samples that the decoder is fitted to
RIDGE = 1e-3
_fitting = threading.Lock()


def strip(round_: Round, kind: str, index: int) -> bytes:
    """JPEG of x̂_0 at every step, t = T … 1 from left to right; of the states x_{t-1} if the noise
    cannot be reproduced.

    kind: "images" (trajectory of a sample) or "target_images". Raises NotThereError.
    """
    if kind not in SCORED:
        raise NotThereError(f"'{kind}': trajectories are of {', '.join(SCORED)}")
    path = round_.trajectory(index) if kind == "images" else round_.target(index)
    if not path.is_file():
        raise NotThereError(f"{path.name}: no trajectory there{why_not(round_)}")
    latents = read_tensors(path)["latents"]
    if kind == "images":
        shown = predictions(round_, latents, index)
    else:
        pairs = round_.pairs() or ()
        if index >= len(pairs):
            raise NotThereError(f"{path.name}: no such pair")
        shown = of_target(round_, latents, pairs[index].base)
    tiles = decoder(round_)(latents[1:].float() if shown is None else shown)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(tiles), axis=1)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def of_target(round_: Round, latents: Tensor, base: int) -> Tensor | None:
    """As `predictions`, of the target made from sample `base`."""
    made = round_.pairs_made_with()
    if made["target kind"] == "attention":
        return predictions(round_, latents, base)
    # Other targets are the base up to a step, and have other noise from there.
    first = first_fused(made["fusion steps"], len(latents) - 1)
    own = predictions(round_, latents, base, other_noise=True)
    if first == 0 or own is None:
        return own
    if not round_.trajectory(base).is_file():
        return None
    before = predictions(round_, read_tensors(round_.trajectory(base))["latents"], base)
    return None if before is None else torch.cat([before[:first], own[first:]])


def predictions(
    round_: Round, latents: Tensor, sample: int, other_noise: bool = False
) -> Tensor | None:
    """x̂_0 (T, C, h, w) that the network predicted at each step, or None.

    latents: (T+1, C, h, w). other_noise: whether the steps have the sample's other noise. None if
    the round does not say how its sampler steps, or if the trajectory does not start with the noise
    of its seed.
    """
    manifest = round_.manifest() or {"made_with": {}}
    made = manifest["made_with"]
    steps, shape = len(latents) - 1, tuple(latents.shape[1:])
    sigmas = made.get("sigmas", [])
    mean = manifest.get("mean") or schedule(made.get("timesteps", []), sigmas)
    if not len(mean) == len(sigmas) == steps:
        return None
    x_T, z = noises(made["seed"], made["round"], sample, steps, shape)
    if not x_T.to(latents.dtype).equal(latents[0]):
        return None
    if other_noise:
        _, z = noises(made["seed"], made["round"], sample, steps, shape, OTHER)
    x, x_next = latents[:-1].double(), latents[1:].double()
    rows = [[*factors, sigma] for factors, sigma in zip(mean, sigmas, strict=True)]
    of_x0, of_x, std = torch.tensor(rows, dtype=torch.float64).T
    known = x_next - _column(std) * z - _column(of_x) * x
    return (known / _column(of_x0)).float()


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


def schedule(timesteps: list[int], sigmas: list[float]) -> list[tuple[float, float]]:
    """Sampler.mean_factors of Stable Diffusion's schedule, if these are its sigmas; else none.

    For rounds whose manifest does not say them.
    """
    if not timesteps or len(timesteps) != len(sigmas):
        return []
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas, t = (1 - betas).cumprod(0), torch.tensor(timesteps).long()
    if int(t.max()) >= len(alphas) or int(t.min()) < 0:
        return []
    largest = torch.tensor(sigmas).max()
    for final in (float(alphas[0]), 1.0):
        whole = ddim(alphas, t, final, eta=1.0)
        eta = min(1.0, float(largest / whole.std.max()))
        found = ddim(alphas, t, final, eta)
        same = (found.std - torch.tensor(sigmas)).abs().max() < 1e-4
        if same and (found.output_scale != 0).all():
            return found.mean_factors()
    return []


@dataclass(frozen=True)
class Decoder:
    """A latent as RGB: the features of each cell, times `weights`, are a patch of f x f pixels.

    weights: (F, 3 f f).
    """

    weights: np.ndarray
    factor: int

    def __call__(self, latents: Tensor) -> np.ndarray:
        """(N, C, h, w) -> uint8 (N, f h, f w, 3)."""
        n, _, h, w = latents.shape
        f = self.factor
        patches = (features(latents) @ self.weights).reshape(n, h, w, f, f, 3)
        pixels = patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * f, w * f, 3)
        return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def features(latents: Tensor) -> np.ndarray:
    """(N, C, h, w) -> (N h w, F): a latent with its eight neighbours, its products, and a one."""
    padded = torch.nn.functional.pad(latents.float(), (1, 1, 1, 1), mode="replicate")
    columns = torch.nn.functional.unfold(padded, 3).transpose(1, 2).flatten(0, 1)
    centre = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
    i, j = torch.triu_indices(centre.shape[1], centre.shape[1])
    products = centre[:, i] * centre[:, j]
    return torch.cat([columns, products, torch.ones(len(columns), 1)], 1).numpy()


def decoder(round_: Round) -> Decoder:
    """A decoder fitted to samples of this round. Raises NotThereError if it has none yet."""
    there = sorted(present(round_.folder / "images"))
    there = [i for i in there if round_.trajectory(i).is_file()]
    if not there:
        raise NotThereError(f"{round_.folder.name}: no sample with a trajectory yet")
    # Fitted again when the number of samples doubles, until there are enough.
    count = min(FITTED, 1 << (len(there).bit_length() - 1))
    if count == FITTED:
        there = [there[i * len(there) // FITTED] for i in range(FITTED)]
    with _fitting:  # a page requests several trajectories at once
        chosen = tuple(there[:count])
        return _fitted(round_.folder, chosen, tuple(stamp(round_.trajectory(i)) for i in chosen))


@lru_cache(maxsize=8)
def _fitted(folder: Path, indices: tuple[int, ...], files: tuple[object, ...]) -> Decoder:
    """files: stamps, so that replaced files are read again."""
    round_ = Round(folder)
    latents, pictures = [], []
    for i in indices:
        latents.append(read_tensors(round_.trajectory(i))["latents"][-1].float())
        try:
            with Image.open(round_.image("images", i)) as image:
                pictures.append(image.convert("RGB"))
        except OSError as error:
            raise UserError(f"{round_.image('images', i)}: unreadable ({error})") from error
    x = torch.stack(latents)
    _, _, h, w = x.shape
    factor = max(1, min(pictures[0].width // w, TILE // w))
    size = w * factor, h * factor
    small = [np.asarray(p.resize(size, Image.Resampling.BOX), np.float64) / 255 for p in pictures]
    y = np.stack(small).reshape(len(x), h, factor, w, factor, 3).transpose(0, 1, 3, 2, 4, 5)
    a, b = features(x).astype(np.float64), y.reshape(len(x) * h * w, -1)
    normal = a.T @ a + RIDGE * len(a) * np.eye(a.shape[1]) * a.var()
    return Decoder(np.linalg.solve(normal, a.T @ b), factor)
