"""Files that appear whole or not at all: written aside, synced, renamed. Nothing is pickled."""

import hashlib
import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dfusion.errors import UserError

SCHEMA = 1
CHECKSUM = "sha256"
WRITERS = 8  # a file is mostly waiting for the disk


class Writer:
    """Writes files beside the computation, a batch behind at most.

    with Writer() as writer: writer.put(write_png, path, pixels) …; writer.next_batch(). Leaving the
    block waits for all files. An error of a write is raised by the next next_batch or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WRITERS)
        self._before: list[Future] = []
        self._now: list[Future] = []

    def put(self, write: Callable[..., None], *args: Any) -> None:
        """Write in the background; the arguments must not be changed afterwards."""
        self._now.append(self._pool.submit(write, *args))

    def next_batch(self) -> None:
        """Wait for the batch before the one that was put last."""
        for future in self._before:
            future.result()
        self._before, self._now = self._now, []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True)
        if exception[0] is None:
            self.next_batch()
            self.next_batch()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; a crash leaves the old file or the new one.

    Raises OSError, naming `path`, where the disk is full or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    aside = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Delete what dead processes of this machine were writing aside when they ended."""
    for path in folder.rglob(".*.tmp"):
        *_, host, pid, thread, _ = [""] * 4 + path.name.split(".")
        ours = host == socket.gethostname().split(".")[-1] and pid.isdigit() and thread.isdigit()
        if ours and not alive(int(pid)):
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the schema version in front."""
    text = json.dumps({"schema": SCHEMA, **value}, indent=1, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what write_json wrote. Raises UserError for damage or another schema version."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); delete it to have it rebuilt"
        ) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise UserError(f"{path}: not of schema version {SCHEMA}; written by other software")
    return value


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W, 3) or (H, W), with a checksum of them."""
    buffer, note = io.BytesIO(), PngInfo()
    note.add_text(CHECKSUM, _digest([pixels.tobytes()]))
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=note)
    write_bytes(path, buffer.getvalue())


def read_png(path: Path) -> np.ndarray:
    """Read what write_png wrote. Raises UserError for a damaged, edited or foreign file."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
            expected = image.info.get(CHECKSUM)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to have it rebuilt") from error
    if expected != _digest([pixels.tobytes()]):
        raise UserError(f"{path}: not as it was written (checksum); delete it to have it rebuilt")
    return pixels


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors as safetensors, with a checksum; metadata values are kept as JSON."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {k: json.dumps(v) for k, v in {"schema": SCHEMA, **metadata}.items()}
    write_bytes(path, save(plain, {**header, CHECKSUM: _digest(_parts(plain))}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what write_tensors wrote. Raises UserError for a damaged, edited or foreign file."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it to have it rebuilt") from error
    if expected != _digest(_parts(tensors)):
        raise UserError(f"{path}: not as it was written (checksum); delete it to have it rebuilt")
    return tensors


def _parts(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """What a checksum of tensors covers: names, types, shapes and values."""
    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
