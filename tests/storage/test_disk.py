"""Full disks, vanished folders, lost permission: a clear stop, nothing half-written, then on."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfusion.commands.flags import DISK
from dfusion.commands.verify import verify
from dfusion.errors import UserError
from dfusion.method.sampling import sample
from dfusion.rounds import runner
from dfusion.rounds.scoring import heartbeat
from dfusion.rounds.session import sample_rounds
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_bytes
from dfusion.storage.lock import Lock
from dfusion.training.trainer import train_rounds
from tests.conftest import small
from tests.faults import contents, difference

ROOT = Path(__file__).parents[2]
CAUSES = {
    "full": errno.ENOSPC,
    "read-only": errno.EROFS,
    "forbidden": errno.EACCES,
    "quota": errno.EDQUOT,
    "broken": errno.EIO,
}


def fail_after(count: int, cause: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename after `count` of them fails, as it does when something befalls the disk."""
    real, calls = os.replace, iter(range(10**6))

    def replace(a: Path, b: Path) -> None:
        if next(calls) >= count:
            raise OSError(cause, os.strerror(cause))
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize(
    ("cause", "count"),
    [("full", 0), ("full", 60), ("read-only", 9), ("forbidden", 30), ("quota", 50), ("broken", 42)],
)
def test_a_disk_that_fails_stops_the_run_and_it_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, cause: str, count: int
) -> None:
    assert CAUSES[cause] in DISK  # so that it ends in one line
    chosen = small(settings, 1, "exp")
    fail_after(count, CAUSES[cause], monkeypatch)
    with pytest.raises(OSError, match=os.strerror(CAUSES[cause])) as caught:
        train_rounds(chosen)
    assert caught.value.filename  # names the file
    folder = Path(chosen.save_path) / "exp"
    assert not list(folder.rglob("*.tmp"))
    monkeypatch.undo()
    train_rounds(chosen)
    assert verify(folder) == []


def test_a_vanished_folder_stops_the_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever for files that went with it."""
    folder = Path(settings.save_path) / "exp"
    calls = iter(range(10**6))

    def vanishing(*args: object) -> object:
        if next(calls) == 1:
            shutil.move(folder, folder.with_name("away"))
        return sample(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "sample", vanishing)
    # A file that is being written at that moment may be the first to miss its folder.
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        sample_rounds(settings)
    error = caught.value
    vanished = "config.json: vanished during the run" in str(error)
    assert vanished or (isinstance(error, OSError) and error.errno in DISK)
    monkeypatch.undo()
    shutil.rmtree(folder)
    shutil.move(folder.with_name("away"), folder)
    sample_rounds(settings)
    assert verify(folder) == []


def test_a_file_size_limit_stops_the_command_with_one_line(
    settings: Settings, pipeline_folder: Path, tmp_path: Path
) -> None:
    """The real command under RLIMIT_FSIZE; without the limit it goes on to the same bits."""
    whole = sample_rounds(settings)
    flags = [f"--config.{k}={v}" for k, v in flat_flags(settings).items()]
    command = [sys.executable, "run_sample.py", *flags, "--config.exp_name=limited"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    limited = ["bash", "-c", 'ulimit -f 4 && exec "$@"', "-", *command]
    done = subprocess.run(limited, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "trajectories" in line and "File too large; once that is fixed" in line
    folder = Path(settings.save_path) / "limited"
    assert not list(folder.rglob("*.tmp"))
    settings.exp_name = "limited"
    sample_rounds(settings)
    assert difference(contents(whole), contents(folder)) == []


def flat_flags(settings: Settings) -> dict[str, object]:
    s = settings
    return {
        "seed": s.seed,
        "save_path": s.save_path,
        "device": "cpu",
        "prompt_file": s.prompt_file,
        "item_idx_file": s.item_idx_file,
        "pretrained.model": s.pretrained.model,
        "sample.num_steps": 4,
        "sample.batch_size": 2,
        "sample.num_batches_per_epoch": 2,
        "fusion.steps": "3-1",
        "eval.reward": s.eval.reward,
        "eval.in_process": True,
    }


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_nothing_is_left_aside_wherever_a_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open" if where == "open" else f"os.{where}", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert caught.value.filename == str(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_lock_that_cannot_be_noted_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(0, errno.ENOSPC, monkeypatch)
    with pytest.raises(OSError, match="No space"):
        Lock(tmp_path / "lock").acquire()
    monkeypatch.undo()
    assert Lock(tmp_path / "lock").acquire()


def test_a_full_disk_does_not_end_the_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fail_after(0, errno.ENOSPC, monkeypatch)
    with heartbeat(tmp_path, []):
        pass
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_ends_in_one_line(
    tmp_path: Path, pipeline_folder: Path
) -> None:
    """Exit code 1: nothing is wrong with the flags, and the same command goes on later."""
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [
            *(sys.executable, "run_sample.py", f"--config.save_path={tmp_path}/file/data"),
            *("--config.exp_name=exp", f"--config.pretrained.model={pipeline_folder}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "Not a directory" in line and "continues" in line
