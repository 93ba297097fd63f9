"""data/ratings/*.jsonl: one line per answer, on disk before the app confirms it.

A rater's last answer to a question counts. A crash can damage only the line being written, which is
then skipped.
"""

import json
import os
import re
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.view.folders import Data

_RATER = re.compile(r"\w[\w .@+'’-]{0,39}")
_appending = threading.Lock()


def rater_name(text: object) -> str:
    """A rater's name, trimmed. Raises UserError for one that is empty or odd."""
    name = unicodedata.normalize("NFC", " ".join(str(text or "").split()))
    # Many scripts use combining marks, which \w does not match.
    plain = "".join(c for c in name if not unicodedata.category(c).startswith("M"))
    if len(name) > 40 or not _RATER.fullmatch(plain):
        raise UserError("the rater's name: 1 to 40 letters, digits, spaces or . @ + ' -")
    return name


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a line with the time; return once it is on disk."""
    stamped = {**row, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    line = json.dumps(stamped, ensure_ascii=False).encode() + b"\n"
    with _appending:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # torn by a crash
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def file(data: Data, name: str) -> Path:
    """Path of a file of answers. Raises NotThereError if a link leads out of the data folder."""
    return data.inside(data.root / "ratings" / name)


def read(data: Data, path: Path, is_one: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """`rows`, cached until the file changes."""
    return data.read(path, lambda p: rows(p, is_one)) if path.exists() else []


def rows(path: Path, is_one: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """All complete lines that `is_one` accepts, in order."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_one(row):
            found.append(row)
    return found


def has(row: dict[str, Any], **kinds: type | tuple[type, ...]) -> bool:
    """Whether a row has these fields, of exactly these types (bool is not int)."""
    wanted = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in kinds.items()}
    return all(name in row and type(row[name]) in kind for name, kind in wanted.items())
