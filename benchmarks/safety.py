"""What safety costs a round: checksums, atomic writes, locks and checks for NaN.

    python -m benchmarks.safety
    python -m benchmarks.safety --model sd21 --unet-seconds 0.05

The calls are timed on files of the size a round writes, in the folder given, and set beside the
UNet's time in that round: evaluations (benchmarks.table3) times the seconds of one, measured here
for the testbed and given for a model that this machine is too slow for. What would be written
without safety as well, plain bytes, is subtracted.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from benchmarks import bare, models
from dfusion.storage.files import read_png, read_tensors, write_png, write_tensors
from dfusion.storage.lock import Lock


@dataclass(frozen=True)
class Size:
    """A round. items: of a prompt. evaluations: of the UNet, one row each, a step back as two."""

    images: int
    pairs: int
    steps: int
    fused: int
    latent: tuple[int, int, int]
    side: int
    grid: int
    trained_passes: int
    items: int = 2

    @property
    def evaluations(self) -> int:
        guided = 2
        sampling = self.images * self.steps
        fusing = self.pairs * self.fused * 2
        training = self.pairs * self.fused * 2 * self.trained_passes * 3
        return guided * (sampling + fusing + training)


SIZES = {
    "testbed": Size(256, 128, 20, 20, (4, 16, 16), 64, 8, 1),
    "sd21": Size(640, 320, 20, 18, (4, 64, 64), 512, 16, 2),
}


def seconds_of(work: Callable[[], object], repeats: int = 20) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def files_of(size: Size) -> tuple[dict[str, Tensor], np.ndarray]:
    """What a sample leaves: its states and item maps, and its picture."""
    rng = np.random.default_rng(0)
    latents = torch.randn(size.steps + 1, *size.latent)
    maps = torch.rand(size.steps, size.items, size.grid, size.grid)
    pixels = rng.integers(0, 256, (size.side, size.side, 3), np.uint8)
    return {"latents": latents, "maps": maps}, pixels


def costs(size: Size, folder: Path) -> dict[str, tuple[float, int]]:
    """Seconds of one call above its plain counterpart, and calls a round."""
    tensors, pixels = files_of(size)
    states, picture, plain = (folder / n for n in ("t.safetensors", "p.png", "plain"))
    safe = seconds_of(lambda: write_tensors(states, tensors, {}))
    bytes_alone = seconds_of(lambda: plain.write_bytes(save(tensors)))
    write_png(picture, pixels)
    encode = seconds_of(lambda: write_png(picture, pixels), 5)
    encode_plain = seconds_of(lambda: plain.write_bytes(_encode(pixels)), 5)
    decode_plain = seconds_of(lambda: _decode(picture), 5)
    x = tensors["latents"]
    lock = Lock(folder / "lock")
    return {
        "states and targets written": (safe - bytes_alone, size.images + size.pairs),
        "pictures written": (encode - encode_plain, size.images + 2 * size.pairs),
        "pictures checked by the scorer": (
            seconds_of(lambda: read_png(picture), 5) - decode_plain,
            size.images + size.pairs,
        ),
        "states checked before training": (
            seconds_of(lambda: (read_tensors(states), x.isfinite().all())),
            2 * size.pairs,
        ),
        "states looked at for NaN": (
            seconds_of(lambda: x.isfinite().flatten(1).all(1)),
            size.images + size.pairs,
        ),
        "locks taken": (seconds_of(lambda: _hold(lock)), 4),
    }


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _hold(lock: Lock) -> None:
    lock.acquire()
    lock.release()


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="testbed")
    parser.add_argument("--folder", type=Path, help="on the disk to write to")
    parser.add_argument("--unet-seconds", type=float, help="of one evaluation (one row)")
    args = parser.parse_args()
    size = SIZES[args.model]
    each = args.unet_seconds or _unet_seconds(args.model)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        found = costs(size, Path(name))
    total = sum(seconds * count for seconds, count in found.values())
    for what, (seconds, count) in found.items():
        print(f"{what:34} {seconds * 1e3:8.3f} ms x {count:5} = {seconds * count:7.2f} s")
    unet = each * size.evaluations
    print(f"{'UNet':34} {each * 1e3:8.3f} ms x {size.evaluations:5} = {unet:7.2f} s")
    print(
        f"Safety takes {100 * total / unet:.2f} % of the UNet's time in a round; it would be 1 % "
        f"at {1e5 * total / size.evaluations:.3f} ms an evaluation."
    )


def _unet_seconds(name: str) -> float:
    """One row's evaluation here, in a batch of eight."""
    model = models.make(name, torch.device("cpu"), torch.float32)
    return seconds_of(bare.unet_calls(model.network, model, [8]), 5) / 8


if __name__ == "__main__":
    main()
