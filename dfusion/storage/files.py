"""Atomic, checksummed files: written to a temporary name, synced, renamed. Nothing is pickled."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
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
from dfusion.storage.strict_json import load_json

SCHEMA = 1
CHECKSUM = "sha256"
WRITERS = 8  # threads; writing is mostly waiting for the disk
MOST_PIXELS = 2**26  # 8192 x 8192
# No hard link possible: another disk, no support, too many links, or another user's file.
NO_LINKS = {errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EPERM}
REBUILT = "delete it to have it rebuilt"


class Writer:
    """Writes files on background threads, at most one batch behind the computation.

    with Writer() as writer: writer.put(write_png, path, pixels) …; writer.next_batch(). Leaving the
    block waits for all files. A failed write raises in a later next_batch or on leaving the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WRITERS)
        self._before: list[Future[None]] = []
        self._now: list[Future[None]] = []

    def put(self, write: Callable[..., None], *args: Any) -> None:
        """Write in the background; the arguments must not be changed afterwards."""
        self._now.append(self._pool.submit(write, *args))

    def next_batch(self) -> None:
        """Wait until the previous batch is written; the current one may still be under way."""
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


def write_bytes(path: Path, *data: bytes | memoryview) -> None:
    """Replace `path` with `data` atomically: a crash leaves the old file or the new one.

    Raises OSError, naming `path`, where the disk is full or the folder cannot be written to.
    """
    with contextlib.suppress(FileExistsError):  # if it is a file, open() raises below
        path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    aside = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        with open(aside, "wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Hard-link `target` to the file `source`, or copy it where hard links are not possible.

    Files here are replaced, never edited in place, so the two names do not affect each other.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        write_bytes(target, source.read_bytes())


def appear(aside: Path, folder: Path) -> None:
    """Rename the complete folder `aside` to `folder`, which thus appears atomically."""
    for at, _, _ in os.walk(aside):
        _sync(Path(at))
    aside.rename(folder)
    _sync(folder.parent)


def stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is replaced. Raises FileNotFoundError if there is none."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def sweep(folder: Path) -> None:
    """Delete the temporary files that dead processes of this machine left behind."""
    found = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    ours = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.\d+\.tmp")
    for path in found:
        written = ours.fullmatch(path.name)
        if written and not alive(int(written[1])):
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process with this id is running on this machine."""
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


def read_json(path: Path, remedy: str = REBUILT) -> dict[str, Any]:
    """Read what write_json wrote. Raises UserError for damage or another schema version."""
    try:
        value = load_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not written by this software; {remedy}")
    _check_schema(path, value.get("schema"))
    return value


def _check_schema(path: Path, found: object, wanted: object = SCHEMA) -> None:
    if isinstance(found, bool) or found != wanted:
        raise UserError(
            f"{path}: of schema version {found}, not {SCHEMA}; use the version of this software "
            "that wrote it, or choose another --config.exp_name"
        )


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W, 3) or (H, W), with a checksum of them."""
    buffer, note = io.BytesIO(), PngInfo()
    note.add_text(CHECKSUM, _digest([pixels.tobytes()]))
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=note)
    write_bytes(path, buffer.getvalue())


def read_picture(path: Path) -> Image.Image:
    """Decode a PNG (no other format). Raises UserError for damage and for absurd sizes.

    The size is checked before anything is decoded.
    """
    try:
        _check_size(path)
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged ({error}); {REBUILT}") from error


def _check_size(path: Path) -> None:
    """Refuse a PNG of absurd size by the first bytes of its header."""
    with open(path, "rb") as file:
        head = file.read(24)
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels")


def read_png(path: Path) -> np.ndarray:
    """Read what write_png wrote: uint8 pixels, (H, W, 3) or (H, W).

    Raises UserError for a damaged, edited or foreign file.
    """
    image = read_picture(path)
    pixels = np.asarray(image)
    if image.info.get(CHECKSUM) != _digest([pixels.tobytes()]):
        raise UserError(f"{path}: not as it was written (checksum); {REBUILT}")
    return pixels


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors as safetensors, with a checksum; metadata values are kept as JSON."""
    header = {k: json.dumps(v) for k, v in {"schema": SCHEMA, **metadata}.items()}
    write_weights(path, tensors, header)


def write_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Like write_tensors, with a header that another library expects.

    Equal tensors and header give equal bytes.
    """
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes(path, *_ordered(save(plain, {**header, CHECKSUM: _digest(_parts(plain))})))


def _ordered(data: bytes) -> tuple[bytes, bytes, memoryview]:
    """A safetensors file with its metadata sorted; the library's own order is random."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little"), text, memoryview(data)[end:]


def read_tensors(path: Path, remedy: str = REBUILT) -> dict[str, Tensor]:
    """Read what write_tensors wrote. Raises UserError for a damaged, edited or foreign file."""
    tensors, header = _load(path, remedy)
    if CHECKSUM in header:
        _check_schema(path, header.get("schema"), str(SCHEMA))
    if header.get(CHECKSUM) != _digest(_parts(tensors)):
        raise UserError(f"{path}: not as it was written (checksum); {remedy}")
    return tensors


def read_weights(path: Path, remedy: str, must: bool = False) -> dict[str, Tensor]:
    """Read any safetensors file. Raises UserError for damage.

    A checksum must match if there is one. must: there has to be one.
    """
    tensors, header = _load(path, remedy)
    good = [_digest(_parts(tensors))] if must or CHECKSUM in header else [None]
    if header.get(CHECKSUM) not in good:
        raise UserError(f"{path}: not as it was written (checksum); {remedy}")
    return tensors


def read_rows(path: Path, name: str, rows: slice) -> Tensor:
    """Some rows of one tensor; nothing else of the file is read. Raises UserError for damage."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice(name)[rows]
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); {REBUILT}") from error


def _load(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error


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
