"""One process for one job: a lock that the system frees when its owner ends, however it ends."""

import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from dfusion.storage.files import load_json, write_bytes


class Lock:
    """A lock file, and beside it a note of who holds it.

    The system's own lock: a killed owner leaves nothing that has to be recognised as stale.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, path.with_name(f"{path.name}.json")
        self._lock = FileLock(path)

    @property
    def held(self) -> bool:
        """By this object."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Take the lock if nobody has it; False if somebody else does."""
        if self.held:
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

    def taken(self) -> bool:
        """Whether somebody else has it; makes no file where there is none."""
        if not self.path.exists():
            return False
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def owner(self) -> str:
        """Who holds it, in words."""
        noted = self._noted()
        return "another process" if noted is None else "process {} on {}, since {}".format(*noted)

    def with_owner_of(self, other: "Lock") -> bool:
        """Whether one process holds this lock and the other, as far as their notes tell."""
        ours, theirs = self._noted(), other._noted()
        return ours is not None and theirs is not None and ours[:2] == theirs[:2]

    def _noted(self) -> tuple[object, object, object] | None:
        """Process, host and time of its owner; None where there is none, or it came just now."""
        try:
            owner = load_json(self.note)
            return owner["process"], owner["host"], owner["since"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        if self.held:
            self.note.unlink(missing_ok=True)
            self._lock.release()


def run_lock(folder: Path) -> Lock:
    """Held by the run at work on the experiment in `folder`, by process 0 of several."""
    return Lock(folder / ".run.lock")
