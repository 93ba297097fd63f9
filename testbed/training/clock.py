"""Progress of a long job: a line now and then, with what is left."""

from __future__ import annotations

import time


class Clock:
    """Prints `step/total`, figures and an estimate at most every `every` seconds."""

    def __init__(self, total: int, every: float = 20.0) -> None:
        self.total = total
        self.every = every
        self.began = self.printed = time.monotonic()
        self.first: int | None = None

    def tick(self, step: int, **figures: float) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = step
        if now - self.printed < self.every and step < self.total:
            return
        self.printed = now
        rate = (step - self.first) / max(now - self.began, 1e-9)
        left = (self.total - step) / rate / 60 if rate else float("nan")
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"{step}/{self.total}  {text}  {rate:.2f} steps/s  {left:.1f} min left", flush=True)
