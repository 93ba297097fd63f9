"""Two of a kind: one run an experiment, one scorer an experiment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfusion.errors import UserError
from dfusion.rounds.scorer import Scorer
from dfusion.rounds.scoring import scorer_lock
from dfusion.rounds.session import claimed, sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.lock import Lock
from dfusion.training.trainer import train_rounds
from tests.rewards import redness

Process = subprocess.Popen[str]
HOLDER = """
import sys, time
from pathlib import Path
from dfusion.storage.lock import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def holding(path: Path) -> Iterator[Process]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def other(settings: Settings) -> Iterator[Process]:
    with holding(Path(settings.save_path) / settings.exp_name / ".run.lock") as process:
        yield process


def test_a_second_run_names_the_owner(settings: Settings, other: Process) -> None:
    for verb in (sample_rounds, train_rounds):
        with pytest.raises(UserError, match=f"process {other.pid} on .*, since 20"):
            verb(settings)
    assert not (Path(settings.save_path) / settings.exp_name / "config.json").exists()


def test_a_killed_owner_leaves_nothing_behind(settings: Settings, other: Process) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    sample_rounds(settings)
    assert (Path(settings.save_path) / settings.exp_name / "index.html").exists()


def test_other_processes_of_a_run_do_not_ask(settings: Settings, other: Process) -> None:
    with claimed(Experiment(Path(settings.save_path) / settings.exp_name), rank=1):
        pass


def look(data: Path) -> int:
    return Scorer(data, ["exp"], lambda settings: redness, None, 4).watch(0.01, once=True)


def test_a_second_scorer_leaves_the_experiment_alone(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    folder = sample_rounds(settings)
    scores = folder / "epoch0" / "eval" / "images.json"
    before = scores.read_text()
    scores.unlink()
    with holding(scorer_lock(folder).path) as process:
        with pytest.raises(UserError, match=f"scored by process {process.pid}"):
            look(folder.parent)
        assert not scores.exists()
    assert look(folder.parent) == 8
    assert json.loads(scores.read_text()) == json.loads(before)


def test_a_lock_is_taken_once_and_given_back(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "a" / "lock"), Lock(tmp_path / "a" / "lock")
    assert first.acquire() and first.acquire() and not second.acquire()
    assert second.owner().startswith(f"process {os.getpid()} on ")
    first.release()
    assert second.acquire() and not first.acquire()
    second.release()
