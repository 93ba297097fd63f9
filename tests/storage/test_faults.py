"""A few of the kill points of tests/faults.py, and files that dead processes left."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dfusion.models.batching import unfinished
from dfusion.rounds.scorer import Scorer
from dfusion.storage.files import sweep, write_bytes, write_json
from tests.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_as_undisturbed_ones() -> None:
    command = [sys.executable, "-m", "tests.faults", "--points", "6"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 kill points survived." in done.stdout


def test_batches_are_cut_the_same_whatever_is_missing() -> None:
    have = {0, 1, 2, 3, 7}
    assert unfinished(range(10), 4, lambda i: i in have) == [[4, 5, 6, 7], [8, 9]]
    assert unfinished(range(10), 4, lambda i: i != 5) == [[4, 5, 6, 7]]
    assert unfinished([1, 3, 5], 2, lambda i: True) == []


def test_every_planted_bug_has_its_place() -> None:
    for file, stands, _, tests in MUTANTS:
        assert (ROOT / file).read_text().count(stands) == 1, (file, stands)
        assert (ROOT / f"tests/{tests}.py").exists()


def ended() -> int:
    """The number of a process that is no more."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return dead.pid


def test_what_another_machine_writes_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of machines may have dots, and the last label may be all they share."""
    monkeypatch.setattr(socket, "gethostname", lambda: "one.cluster.internal")
    own, other = (
        tmp_path / f".x.png.{host}.cluster.internal.{ended()}.1.tmp" for host in ("one", "two")
    )
    for path in (own, other):
        path.write_bytes(b"")
    sweep(tmp_path)
    assert not own.exists() and other.exists()


def test_a_scorer_sweeps_what_a_dead_one_left(tmp_path: Path) -> None:
    left = tmp_path / "a/epoch0/eval" / f".images.json.{socket.gethostname()}.{ended()}.1.tmp"
    write_bytes(left, b"{")
    write_json(tmp_path / "a/config.json", {"settings": {}})
    Scorer(tmp_path, ["a"], lambda settings: lambda *given: [], None, 1).watch(0.01, once=True)
    assert not left.exists()


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    host, dead = socket.gethostname(), ended()
    left = tmp_path / "epoch0" / f".a.png.{host}.{dead}.1.tmp"
    living = tmp_path / f".b.png.{host}.{os.getpid()}.1.tmp"
    elsewhere = tmp_path / f".c.png.not-{host}.{dead}.1.tmp"
    kept = tmp_path / "d.tmp"
    for path in (left, living, elsewhere, kept):
        write_bytes(path, b"x")
    sweep(tmp_path)
    assert not left.exists()
    assert living.exists() and elsewhere.exists() and kept.exists()
