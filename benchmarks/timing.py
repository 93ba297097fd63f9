"""Times of things that do the same work, taken in turns so that a noisy machine is fair."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfusion.training.metrics import peak_memory

Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Race:
    """seconds: of every repetition, by name.

    first: what the first, untimed run of each returned. peak_gib: of that run, on a GPU; a process
    cannot forget its own peak. flops: multiplications and additions of the counted work, as torch
    counts them; 0 where none was counted.
    """

    seconds: dict[str, list[float]]
    first: dict[str, Any]
    peak_gib: dict[str, float]
    flops: int = 0

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        """Time of `name` over time of `to`, repetition by repetition."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(name, to))


def race(
    works: Mapping[str, Work],
    repeats: int,
    clock: Clock = time.perf_counter,
    counted: str = "",
) -> Race:
    """Run each work once untimed, then all of them `repeats` times, each time in another order.

    clock: time.process_time, seconds of the processor, tells more where other jobs run as well.
    counted: the work whose floating-point operations are counted, in its untimed run.
    """
    names = list(works)
    first: dict[str, Any] = {}
    peaks: dict[str, float] = {}
    flops = 0
    for name in names:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        with FlopCounterMode(display=False) if name == counted else nullcontext() as counter:
            first[name] = works[name]()
        flops += counter.get_total_flops() if counter else 0
        if torch.cuda.is_initialized():
            peaks[name] = peak_memory()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in range(repeats):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(seconds_of(works[name], clock))
    return Race(seconds, first, peaks, flops)


def seconds_of(work: Work, clock: Clock) -> float:
    """Seconds until the device has done the work."""
    _wait()
    started = clock()
    work()
    _wait()
    return clock() - started


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Floating-point operations of a large matrix product in a second of the clock."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = [seconds_of(lambda: a @ b, clock) for _ in range(8)]
    return 2 * n**3 / min(times)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
