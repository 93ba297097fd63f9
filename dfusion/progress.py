"""Progress that reads well on a terminal and in a redirected log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def clock(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress:
    """Counts work done and says how long is left.

    On a terminal one line is rewritten; in a log a line is printed now and then, and at the end.
    """

    def __init__(self, what: str, total: int, every_seconds: float = 30.0) -> None:
        self.what, self.total, self.every = what, total, every_seconds
        self.done = 0
        self.live = sys.stdout.isatty()
        self.started = self.printed = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count `count` more done."""
        self.done += count
        now = time.monotonic()
        finished = self.done >= self.total
        if self.live or finished or now - self.printed >= self.every:
            self.printed = now
            spent = now - self.started
            left = spent / self.done * (self.total - self.done)
            tail = f"in {clock(spent)}" if finished else f"{clock(left)} left"
            line = f"  {self.what}: {self.done}/{self.total}, {tail}"
            end = "\n" if finished or not self.live else ""
            print(f"\r{line:<60}" if self.live else line, end=end, flush=True)


class Stopwatch:
    """Seconds spent in each stage of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's time to stage `name`, less that of stages inside it."""
        started = time.monotonic() - sum(self.seconds.values())
        try:
            yield
        finally:
            spent = time.monotonic() - sum(self.seconds.values()) - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """The seconds so far; begins anew."""
        taken, self.seconds = self.seconds, {}
        return taken
