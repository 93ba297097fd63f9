"""The error that ended an experiment's last run, kept in error.json until a run starts."""

import shlex
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfusion.errors import UserError, one_line
from dfusion.storage.files import read_json, write_json

FILE = "error.json"


def keep(folder: Path, error: Exception) -> None:
    """Write error.json. A disk that cannot be written to raises no second error."""
    ours = isinstance(error, UserError | OSError)
    note: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(["python3", *sys.argv]),
        "message": one_line(str(error) if ours else f"{type(error).__name__}: {error}"),
    }
    if not ours:
        note["traceback"] = traceback.format_exception(error)
    with suppress(OSError):
        if folder.is_dir():
            write_json(folder / FILE, note)


def clear(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)


def last(folder: Path) -> str:
    """One line on the error that ended the last run: time, message, command; empty for none."""
    path = folder / FILE
    if not path.exists():
        return ""
    try:
        note = read_json(path)
    except UserError as error:
        return str(error)
    when, message, command = (one_line(str(note.get(k))) for k in ("time", "message", "command"))
    return f"the last run ended with an error ({when}): {message}; its command: {command}"
