"""Strict reading of JSON files from any source. Does not import torch."""

import json
import stat
from pathlib import Path
from typing import Any

JSON_BYTES = 2**28


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises OSError, and ValueError for anything but a regular file of valid JSON, at most JSON_BYTES
    large, not nested too deep, and without duplicate names in an object.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("not a regular file")
    if about.st_size > JSON_BYTES:
        raise ValueError(f"{about.st_size} bytes, more than {JSON_BYTES}")
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' appears twice in one object")
    return found
