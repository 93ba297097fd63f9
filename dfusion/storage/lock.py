"""A lock that the operating system releases when its owner ends, however it ends."""

import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from dfusion.storage.files import write_bytes
from dfusion.storage.strict_json import load_json


class Lock:
    """A lock file, with a note of its owner beside it.

    The operating system does the locking, so a killed owner leaves no stale lock.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, path.with_name(f"{path.name}.json")
        self._lock = FileLock(path)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Take the lock; False if another process holds it."""
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
        """Whether another process holds the lock. Creates no file."""
        if not self.path.exists():
            return False
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def owner(self) -> str:
        """A description of the process that holds the lock."""
        noted = self._noted()
        return "another process" if noted is None else "process {} on {}, since {}".format(*noted)

    def with_owner_of(self, other: "Lock") -> bool:
        """Whether, by their notes, the same process holds this lock and `other`."""
        ours, theirs = self._noted(), other._noted()
        return ours is not None and theirs is not None and ours[:2] == theirs[:2]

    def _noted(self) -> tuple[object, object, object] | None:
        """Process, host and time of the owner; None if there is none, or no note of it yet."""
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
    """The lock that a run holds on the experiment in `folder`; process 0 holds it for all."""
    return Lock(folder / ".run.lock")
