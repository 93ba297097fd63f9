"""The processes of a run: what each does, and how they wait for what others write.

They divide a round by index and exchange no messages: each waits for the files that it needs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dfusion.errors import UserError
from dfusion.progress import clock
from dfusion.storage.experiment import Experiment

SAY_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """This process's rank among the processes of a run."""

    rank: int = 0
    size: int = 1

    def mine(self, count: int) -> range:
        """This process's share of 0 … count - 1."""
        return range(self.rank, count, self.size)


class Waiting:
    """Waits for files of an experiment, and says what is missing. poll_seconds: between looks."""

    def __init__(self, experiment: Experiment, world: World, poll_seconds: float) -> None:
        self.experiment, self.world, self.poll_seconds = experiment, world, poll_seconds

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.world.rank == 0:
            print(text, flush=True)

    def until(
        self,
        done: Callable[[], int],
        total: int,
        what: str,
        hint: Callable[[], str] | None = None,
    ) -> None:
        """Poll until `done()` reaches `total`; report what is missing from time to time."""
        started = time.monotonic()
        said = started - SAY_EVERY_SECONDS
        while (have := done()) < total:
            self.check_still_there()
            now = time.monotonic()
            if now - said >= SAY_EVERY_SECONDS:
                note = hint() if hint else ""
                self.say(
                    f"  waiting for {total - have} of {total} {what}, {clock(now - started)} so far"
                    + (f"; {note}" if note else "")
                )
                said = now
            time.sleep(min(0.5, self.poll_seconds))

    def check_still_there(self) -> None:
        """Raise UserError if the folder vanished: nothing would ever appear in it."""
        config = self.experiment.config_file
        if not config.exists():
            raise UserError(
                f"{config}: vanished during the run; restore the folder (is its disk mounted?), "
                "and run the same command again to continue"
            )
