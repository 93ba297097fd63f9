"""Batch sizes that fit the device's memory: found by trying, lowered when it runs out."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from dfusion.errors import UserError
from dfusion.settings.schema import AUTO

ON_CPU = 8  # "auto" on a CPU, where larger batches are no faster
MOST = 64  # a GPU is busy with fewer

Item = TypeVar("Item")
Result = TypeVar("Result")


def guess(asked: int | str) -> int:
    """The size to assume where none is tried."""
    return ON_CPU if asked == AUTO else int(asked)


class Fit:
    """The number of items in one call on a device.

    flag, asked: the flag that sets it, and its value, a number or "auto". On a GPU, "auto" starts
    with one item and doubles while that fits, up to `most`; on a CPU it is `on_cpu`. Either way the
    size is halved when the GPU's memory runs out, and does not grow after that.
    """

    def __init__(
        self,
        flag: str,
        asked: int | str,
        device: torch.device,
        most: int = MOST,
        on_cpu: int = ON_CPU,
        say: Callable[[str], None] = print,
    ) -> None:
        automatic, tries = asked == AUTO, device.type == "cuda"
        self.size = int(asked) if not automatic else 1 if tries else min(on_cpu, most)
        self._flag, self._most, self._say = flag, most, say
        self.grows = automatic and tries

    @property
    def cut(self) -> int | None:
        """The batch size to plan with; None while it may still grow."""
        return None if self.grows else self.size

    def over(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Yield (part, work(part)) for consecutive parts; one that does not fit is cut smaller.

        Raises UserError if not even one item fits.
        """

        def attempt(start: int) -> tuple[Sequence[Item], Result]:
            part = items[start : start + self.size]
            return part, work(part)

        start = 0
        while start < len(items):
            part, result = self.retried(attempt, start)
            self.fitted(len(part))
            start += len(part)
            yield part, result

    def retried(self, work: Callable[..., Result], *args: object) -> Result:
        """work(*args), which reads `size`; repeated with a smaller size when memory runs out."""
        while True:
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                return work(*args)
            self._lower()

    def fitted(self, count: int) -> None:
        """Report that a call with `count` items fitted, so that the next may be larger."""
        if self.grows and count == self.size:
            self.size = min(2 * self.size, self._most)

    def _lower(self) -> None:
        torch.cuda.empty_cache()
        if self.size == 1:
            raise UserError(
                f"--config.{self._flag}: the GPU's memory does not hold a single item; free some, "
                "or try --config.mixed_precision bf16 or --config.train.gradient_checkpointing"
            )
        self.size //= 2
        self.grows = False
        self._say(f"  out of GPU memory: --config.{self._flag} is {self.size} from here on")


def unfinished(
    indices: Sequence[int], size: int | None, there: Callable[[int], bool]
) -> list[list[int]]:
    """The batches of `size` that are incomplete; without a size, one batch of all that is missing.

    Batches are cut as if nothing existed yet: a sample's last bits depend on its batch, and an
    interrupted run must end with the same bits as any other.
    """
    if size is None:
        return [missing] if (missing := [i for i in indices if not there(i)]) else []
    batches = [list(indices[i : i + size]) for i in range(0, len(indices), size)]
    return [batch for batch in batches if not all(map(there, batch))]
