"""The table of runs, their curves and commands, and stopping one."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfusion.settings.plain_values import flat
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import SETTINGS, Settings
from dfusion.storage.experiment import Experiment
from dfusion.storage.files import read_json, write_json
from dfusion.storage.lock import run_lock
from dfusion.view import runs
from dfusion.view.folders import Data
from tests.many_runs import make
from tests.viewing import client_of, copy_of

OPENED: list[str] = []
COUNTING = False


def _note(event: str, args: tuple[Any, ...]) -> None:
    if COUNTING and event == "open":
        OPENED.append(str(args[0]))


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """The files of `folder` that the block opens."""
    global COUNTING
    if _note not in HOOKS:
        sys.addaudithook(_note)
        HOOKS.append(_note)
    OPENED.clear()
    found: list[str] = []
    COUNTING = True
    try:
        yield found
    finally:
        COUNTING = False
        found += [path for path in OPENED if path.startswith(str(folder))]


HOOKS: list[object] = []


@pytest.fixture
def many(tmp_path: Path) -> Path:
    make(tmp_path / "data", 10)
    return tmp_path / "data"


def test_unchanged_files_are_not_read_again(many: Path) -> None:
    data, results = Data(many), many / "none"
    before = runs.overview(data, results)
    with opened(many) as files:
        assert runs.overview(data, results) == before
    assert files == []
    changed = many / before[3]["name"]
    round_ = Experiment(changed).comparison(4)
    round_.write_scores("images", "clip", dict.fromkeys(round_.scores("images"), 0.99))
    with opened(many) as files:
        after = runs.overview(data, results)
    assert files and all(path.startswith(str(changed)) for path in files)
    assert [row["score"] for row in after].count(0.99) == 1
    assert after[3]["gain"] == pytest.approx(0.99 + before[3]["gain"] - before[3]["score"])


def test_rows_have_what_differs_and_a_group_by_seed(many: Path) -> None:
    rows = {row["name"]: row for row in runs.overview(Data(many), many)}
    one = rows["dpo_dfusion_00_s42"]
    assert one["settings"] == {"seed": 42, "train.method": "dpo", "train.pairs": "dfusion"}
    same = [name for name, row in rows.items() if row["same"] == one["same"]]
    assert same == ["dpo_dfusion_00_s42", "dpo_dfusion_00_s43", "dpo_dfusion_00_s44"]
    failed = [name for name, row in rows.items() if row["state"] == "failed"]
    assert failed == ["dpok_dfusion_02_s44"]
    assert "the loss is NaN" in rows[failed[0]]["error"]
    assert rows[failed[0]]["rounds"] == {"done": 2, "total": 4}


def test_every_number_of_the_metrics_is_a_curve(tmp_path: Path) -> None:
    write_json(tmp_path / "exp/config.json", {"settings": Settings().to_dict()})
    lines: list[Any] = [
        {"kind": "update", "round": 0, "loss": 3.0, "skipped": False, "by_step": [1.0]},
        {"kind": "round", "round": 0, "reward_mean": 1.0, "parts": {"clip": 0.25, "mine:f": 2}},
        {"kind": "update", "round": 1, "loss": 2.0},
        {"kind": "update", "round": 1, "loss": float("nan")},
        {"kind": "round", "round": 1, "parts": {"clip": None, "mine:f": 3}},
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "exp/metrics.jsonl").write_text(f"{text}\nnot a row\n")
    keys = ["update.loss", "round.parts.clip", "round.parts.mine:f"]
    found = runs.chosen_curves(Data(tmp_path), tmp_path, ["exp"], keys)["exp"]
    assert sorted(found["keys"]) == sorted(keys)
    assert found["curves"] == {
        "update.loss": [[0, 3.0], [1, 2.0]],
        "round.parts.clip": [[0, 0.25]],
        "round.parts.mine:f": [[0, 2], [1, 3]],
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_gives_the_settings(preset: str) -> None:
    settings = PRESETS[preset]()
    settings.exp_name, settings.prompt = "a b", "it's a $cat"
    settings.train.beta, settings.eval.in_process, settings.eval.pretrained = 0.3, True, ""
    python, script, *words = shlex.split(runs.command(settings, trains=True))
    assert (python, script) == ("python3", "run_train.py")
    assert words[:2] == (["--config", preset] if preset != "paper" else words[:2])
    given = flat(PRESETS[preset]().to_dict())
    for word in words[0 if preset == "paper" else 2 :]:
        name, _, value = word.removeprefix("--config.").partition("=")
        kind = SETTINGS[name].kind
        given[name] = value == "True" if kind is bool else kind(value)
    assert given == flat(settings.to_dict())


def at_work(folder: Path, process: int, host: str = "") -> None:
    """The note of a run at work."""
    note = {"process": process, "host": host or socket.gethostname(), "since": ""}
    (folder / ".run.lock.json").write_text(json.dumps(note))


def test_a_run_at_work_says_what_it_waits_for(tmp_path: Path, view_data: Path) -> None:
    data = copy_of(view_data, tmp_path)
    experiment = Experiment(data / "exp")
    config = read_json(experiment.config_file)["settings"]
    config["eval"]["in_process"] = False
    write_json(experiment.config_file, {"settings": config})
    round_ = experiment.round(0)
    for name in ("adoption.json", "eval/target_images.json"):
        (round_.folder / name).unlink()
    for age, i in enumerate((2, 0, 3, 1)):
        when = time.time() - age
        os.utime(round_.image("target_images", i), (when, when))
    at_work(experiment.folder, os.getpid())
    (run,) = client_of(data).get("/api/runs").json()
    assert run["latest"] == {"round": "epoch0", "kind": "target_images", "images": [2, 0, 3, 1]}
    assert run["waits"].startswith("waits for 4 scores, but no scorer is at work; start it with")
    assert "run_eval.py --config.exp_name exp" in run["waits"]
    (data / ".scorers").mkdir()
    (data / ".scorers/a.json").write_text(json.dumps({"experiments": [], "reward": None}))
    (run,) = client_of(data).get("/api/runs").json()
    assert run["waits"] == "waits for 4 scores; a scorer is at work"
    (round_.image("target_images", 3)).unlink()
    (run,) = client_of(data).get("/api/runs").json()
    assert run["waits"] == ""  # it fuses


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the experiment's lock, and ends on SIGTERM as a command does."""
    code = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from dfusion.storage.lock import run_lock\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "lock = run_lock(Path(sys.argv[1]))\n"
        "assert lock.acquire()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_run_is_stopped_only_if_the_server_may(tmp_path: Path, view_data: Path) -> None:
    data = copy_of(view_data, tmp_path)
    with holding(data / "exp") as process:
        assert client_of(data).post("/api/stop", json={"exp": "exp"}).status_code == 404
        client = client_of(data, control=True)
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            refused = client.post("/api/stop", json={"exp": "exp"}, headers=headers)
            assert refused.status_code == 403
        assert client.get("/api/stop").status_code == 405
        assert process.poll() is None
        (run,) = client.get("/api/runs").json()
        assert run["state"] == "running" and run["stoppable"]
        assert client.post("/api/stop", json={"exp": "exp"}).json() == {"asked": process.pid}
        process.wait(10)
    assert run_lock(data / "exp").acquire()  # nobody holds it any more


@pytest.mark.parametrize("host", ["", "elsewhere"])
def test_a_note_without_a_held_lock_stops_nothing(
    tmp_path: Path, view_data: Path, host: str
) -> None:
    data = copy_of(view_data, tmp_path)
    (data / "exp/.run.lock").touch()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        at_work(data / "exp", bystander.pid, host)
        answer = client_of(data, control=True).post("/api/stop", json={"exp": "exp"})
        assert answer.status_code == 400 and "no run is at work" in answer.json()["error"]
        assert bystander.poll() is None
        bystander.kill()


def test_a_run_of_another_machine_is_not_stopped(
    tmp_path: Path, view_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copy_of(view_data, tmp_path)
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append(number))
    with holding(data / "exp") as process:
        at_work(data / "exp", process.pid, "elsewhere")
        client = client_of(data, control=True)
        answer = client.post("/api/stop", json={"exp": "exp"})
        assert "stop it there" in answer.json()["error"]
        assert not client.get("/api/runs").json()[0]["stoppable"]
    assert signal.SIGTERM not in sent
