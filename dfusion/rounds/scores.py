"""The scores that a round needs: computed here, or waited for."""

from filelock import FileLock

from dfusion.progress import Stopwatch
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import HUMAN, reward_name, watch_of
from dfusion.rounds.scoring import score_missing, scorer_alive, scorer_command, scorer_lock
from dfusion.rounds.waiting import Waiting
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import WATCH, Experiment, Round
from dfusion.storage.lock import Lock, run_lock


class Scores:
    """Scores of an experiment's images. reward, watch: as for RoundRunner.

    name, watch_name: of the two scorers; watch_name is empty without a second one.
    """

    def __init__(
        self,
        settings: Settings,
        experiment: Experiment,
        wait: Waiting,
        stopwatch: Stopwatch,
        reward: Reward | None,
        watch: Reward | None,
    ) -> None:
        self.settings, self.experiment = settings, experiment
        self.wait, self.stopwatch = wait, stopwatch
        self.reward, self.name = reward, reward_name(settings.eval)
        watching = watch_of(settings.eval)
        self.watch, self.watch_name = watch, reward_name(watching) if watching else ""

    def of(self, round_: Round, kind: str, count: int) -> dict[int, float]:
        """Wait for all scores of a kind, computed here if `reward` is given, else by a scorer."""
        lock = scorer_lock(self.experiment.folder)
        reward, name = self.reward, self.name
        if kind == WATCH:
            reward, name = self.watch, self.watch_name

        def known() -> int:
            found = len(round_.scores(kind, name))
            if found < count and reward and self._may_score(lock):
                self._score(round_, kind, reward, name)
                found = len(round_.scores(kind, name))
            return found

        with self.stopwatch.stage("scoring"):  # or waiting for the scorer
            try:
                self.wait.until(known, count, f"scores of {kind}", lambda: self._hint(lock))
            finally:
                lock.release()
        return round_.scores(kind, name)

    def _may_score(self, lock: Lock) -> bool:
        """Whether no other scorer holds the experiment; process 0 takes the lock for all."""
        if self.wait.world.rank == 0:
            return lock.acquire()
        return lock.with_owner_of(run_lock(self.experiment.folder))

    def _score(self, round_: Round, kind: str, reward: Reward, name: str) -> None:
        """Score this process's share."""
        world, batch = self.wait.world, self.settings.eval.batch_size
        writing = FileLock(self.experiment.folder / ".scores.lock") if world.size > 1 else None
        turn = world.rank, world.size
        score_missing(round_, kind, reward, name, batch, turn=turn, writing=writing)

    def _hint(self, lock: Lock) -> str:
        folder = self.experiment.folder
        if self.reward:
            return "" if lock.held else f"scored by {lock.owner()}"
        if self.settings.eval.reward == HUMAN:
            return f"rate them in the browser:\n    {scorer_command(self.settings)}"
        if scorer_alive(folder.parent, folder.name, self.name):
            return ""
        command = scorer_command(self.settings)
        return f"no scorer is running; start one in another terminal:\n    {command}"
