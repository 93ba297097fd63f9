"""One process for one job: a lock that the system frees when its owner ends, however it ends."""

import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from dfusion.files import load_json, write_bytes


class Lock:
    """A lock file, and beside it a note of who holds it.

    The system's own lock: a killed owner leaves nothing that has to be recognised as stale.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, path.with_name(f"{path.name}.json")
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Take the lock if nobody has it; False if somebody else does."""
        if self._lock.is_locked:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            write_bytes(self.note, json.dumps(owner).encode())
        except OSError:
            self._lock.release()
            raise
        return True

    def owner(self) -> str:
        """Who holds it, in words."""
        try:
            owner = load_json(self.note)
            return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # it came or left just now
            return "another process"

    def release(self) -> None:
        if self._lock.is_locked:
            self.note.unlink(missing_ok=True)
            self._lock.release()
