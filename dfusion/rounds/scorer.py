"""The scorer process: watches data folders and scores every experiment by its own config.json."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from dfusion.errors import UserError
from dfusion.models.numerics import set_numerics
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import HUMAN, reward_name, watch_of
from dfusion.rounds.scoring import score_missing, scorer_lock, unscored
from dfusion.settings.plain_values import settings_of
from dfusion.settings.schema import RENEW, Eval, Settings
from dfusion.storage.experiment import SCORED, WATCH, Experiment, Round
from dfusion.storage.files import read_json, sweep
from dfusion.storage.lock import Lock

RETRY_SECONDS = 60.0


class Scorer:
    """Scores images as they appear under data/<exp>/, for the named experiments or for all.

    load: loads a reward; called once per reward, when it is first needed.
    only: the one reward that this scorer gives; None: each experiment's own.
    """

    def __init__(
        self,
        data: Path,
        names: list[str],
        load: Callable[[Eval], Reward],
        only: str | None,
        batch_size: int,
    ) -> None:
        self.data, self.names, self.load = data, names, load
        self.only, self.batch_size = only, batch_size
        self._locks: dict[Path, Lock] = {}
        self._rewards: dict[str, Reward] = {}
        self._failed: dict[str, tuple[float, str]] = {}  # when to try again, and the error

    def prepare(self, settings: Settings) -> None:
        """Load the reward of these settings now. Raises UserError if that fails."""
        self._rewards[reward_name(settings.eval)] = self.load(settings.eval)

    def watch(self, poll_seconds: float, once: bool) -> int:
        """Score until interrupted or, with `once`, until nothing is left.

        An experiment that cannot be scored, or that another scorer holds, is reported once, skipped
        and tried again later. Returns the number of images scored. With `once`, raises UserError if
        something could not be scored.
        """
        total = 0
        said: set[str] = set()
        try:
            while True:
                scored, problems = self.look()
                for problem in problems:
                    if problem not in said:
                        print(f"skipped: {problem}", flush=True)
                said |= set(problems)
                total += scored
                if once and not scored:
                    if problems:
                        raise UserError(problems[0])
                    return total
                if not scored:
                    time.sleep(poll_seconds)
        finally:
            for lock in self._locks.values():
                lock.release()

    def look(self) -> tuple[int, list[str]]:
        """Score all experiments once; returns the number of images scored, and the problems."""
        total, problems = 0, []
        for folder in self._folders():
            try:
                scored, found = self._score(folder)
            except UserError as error:
                scored, found = 0, [str(error)]
            except OSError as error:
                scored, found = 0, [f"{error.filename or folder}: {error.strerror}"]
            total += scored
            problems += found
        return total, problems

    def _folders(self) -> list[Path]:
        if self.names:
            return [self.data / name for name in self.names]
        return sorted(path.parent for path in self.data.glob("*/config.json"))

    def _score(self, folder: Path) -> tuple[int, list[str]]:
        """Score one experiment; returns the number of images scored, and the problems."""
        experiment = Experiment(folder)
        if not folder.is_dir():
            return 0, [f"{folder}: not there (yet); check --config.exp_name"]
        if not experiment.config_file.exists():  # its run is still loading models
            return 0, []
        settings = self._settings(experiment)
        self._check_rested(reward_name(settings.eval), folder)
        if not self._taken_on(folder):
            return 0, [f"{folder}: scored by {scorer_lock(folder).owner()}"]
        set_numerics(settings)
        total, problems = 0, []
        for round_, kind, by in _to_score(experiment, settings.eval):
            try:
                total += self._score_kind(folder, round_, kind, by)
            except UserError as error:
                problems.append(str(error))
        return total, problems

    def _settings(self, experiment: Experiment) -> Settings:
        """Raises UserError for an unreadable config.json or one that this scorer does not serve."""
        file = experiment.config_file
        settings = settings_of(read_json(file, RENEW).get("settings"), str(file))
        name = reward_name(settings.eval)
        if name == HUMAN:
            raise UserError(f"{experiment.folder}: people give its scores, in dfusion view")
        if self.only not in (None, name):
            raise UserError(
                f"{experiment.folder}: its reward is {name}, and this scorer was told to give "
                f"{self.only}; without --config.eval.reward, each experiment gets its own"
            )
        return settings

    def _taken_on(self, folder: Path) -> bool:
        """Lock an experiment and delete a dead scorer's temporary files; False if it is taken."""
        if folder in self._locks:
            return True
        lock = scorer_lock(folder)
        if not lock.acquire():
            return False
        sweep(folder)
        self._locks[folder] = lock
        return True

    def _score_kind(self, folder: Path, round_: Round, kind: str, by: Eval) -> int:
        """by: names the reward. Raises UserError for any exception in it."""
        where, name = round_.folder / kind, reward_name(by)
        self._check_rested(str(where), where)
        label = f"{folder.name}/{round_.folder.relative_to(folder)} {kind}"
        try:
            if not unscored(round_, kind, name):
                return 0
            reward = self._reward(by, folder)
            return score_missing(round_, kind, reward, name, self.batch_size, label)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a user's reward may raise anything
            raise self._rest(str(where), where, error) from error

    def _reward(self, by: Eval, folder: Path) -> Reward:
        """Raises UserError if it does not load; another scorer may then take the experiment."""
        name = reward_name(by)
        if name not in self._rewards:
            self._check_rested(name, folder)
            try:
                self._rewards[name] = self.load(by)
            except (Exception, SystemExit) as error:  # so may importing its module
                self._locks.pop(folder).release()
                raise self._rest(name, folder, error) from error
        return self._rewards[name]

    def _check_rested(self, what: str, where: Path) -> None:
        """Raise UserError if `what` failed less than RETRY_SECONDS ago."""
        until, why = self._failed.get(what, (0.0, ""))
        if time.monotonic() < until:
            raise UserError(f"{where}: {why}")

    def _rest(self, what: str, where: Path, error: BaseException) -> UserError:
        """Skip `what` for RETRY_SECONDS; returns the error to report."""
        why = f"{_in_words(error)} (tried again every {RETRY_SECONDS:.0f} s)"
        self._failed[what] = time.monotonic() + RETRY_SECONDS, why
        return UserError(f"{where}: {why}")


def _in_words(error: BaseException) -> str:
    """The error as text; for an unexpected one, with file and line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {at.filename}, line {at.lineno}: {error}"


def _to_score(experiment: Experiment, by: Eval) -> list[tuple[Round, str, Eval]]:
    """What may have images to score, and by which reward; first what a run waits for."""
    rounds, compared = experiment.rounds().values(), experiment.comparisons().values()
    found = [(round_, kind, by) for round_ in rounds for kind in SCORED]
    found += [(round_, "images", by) for round_ in compared]
    if watch := watch_of(by):
        found += [(round_, WATCH, watch) for round_ in (*rounds, *compared)]
    return found
