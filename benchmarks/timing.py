"""Times of things that do the same work, taken in turns so that a noisy machine is fair."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dfusion.metrics import peak_memory

Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Race:
    """seconds: of every repetition, by name.

    first: what the first, untimed run of each returned. peak_gib: of that run, on a GPU; a process
    cannot forget its own peak.
    """

    seconds: dict[str, list[float]]
    first: dict[str, Any]
    peak_gib: dict[str, float]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        """Time of `name` over time of `to`, repetition by repetition."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(name, to))


def race(works: Mapping[str, Work], repeats: int, clock: Clock = time.perf_counter) -> Race:
    """Run each work once untimed, then all of them `repeats` times, each time in another order.

    clock: time.process_time, seconds of the processor, tells more where other jobs run as well.
    """
    names = list(works)
    first: dict[str, Any] = {}
    peaks: dict[str, float] = {}
    for name in names:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        first[name] = works[name]()
        if torch.cuda.is_initialized():
            peaks[name] = peak_memory()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in range(repeats):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(seconds_of(works[name], clock))
    return Race(seconds, first, peaks)


def seconds_of(work: Work, clock: Clock) -> float:
    """Seconds until the device has done the work."""
    _wait()
    started = clock()
    work()
    _wait()
    return clock() - started


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
