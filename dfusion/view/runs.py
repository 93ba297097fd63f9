"""Runs as plain data, from what is on disk: progress of every stage, curves, time left."""

import hashlib
import itertools
import json
import os
import re
import shlex
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.report.rounds import present
from dfusion.rewards.registry import HUMAN
from dfusion.rounds.scoring import scorer_alive, scorer_command
from dfusion.settings.plain_values import flat
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import FREE, Settings
from dfusion.storage import last_error
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import alive, read_json, stamp
from dfusion.storage.strict_json import load_json
from dfusion.view.curves import curves, figures, metrics
from dfusion.view.folders import Data

ASIDE = FREE - {"resume_from"}  # settings that do not change what a run does
PNG = re.compile(r"\d{5,}\.png")
LATEST = 12  # images shown of a run at work
# What a row of the table is made from; of folders, the time tells that a file came or went.
OF_A_RUN = ("config.json", "metrics.jsonl", "error.json", "checkpoints", "compare")
OF_A_ROUND = ("", "manifest.json", "adoption.json", "eval/images.json")
RECENT = 64  # files whose times tell the speed of a stage
PAUSE_SECONDS = 900.0  # a longer gap between two files is a pause, not work


@dataclass(frozen=True)
class Stage:
    """done of total; folder: where its files appear, for its speed."""

    name: str
    done: int
    total: int
    folder: Path | None = None


def overview(data: Data, results: Path, control: bool = False) -> list[dict[str, Any]]:
    """A row of the table for every experiment; for an unreadable one, its name and the problem.

    results: folder with the judge's figures, <experiment>.json. control: runs may be stopped.
    """
    rows = []
    for name in data.names():
        try:
            rows.append(run(data, name, _judged(results, name), control))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            rows.append({"name": name, "problem": str(error) or repr(error)})
    _keep_what_differs(rows)
    return rows


def _keep_what_differs(rows: list[dict[str, Any]]) -> None:
    """Drop settings that are the same in all rows: they would be most of the answer."""
    given = [row["settings"] for row in rows if "settings" in row]
    differing = {
        key
        for key in {key for settings in given for key in settings}
        if any(settings.get(key) != given[0].get(key) for settings in given)
    }
    for row in rows:
        if "settings" in row:
            row["settings"] = {k: v for k, v in row["settings"].items() if k in differing}


def run(data: Data, name: str, judged: Path | None = None, control: bool = False) -> dict[str, Any]:
    """One experiment: settings, state, last figures; at work, also progress and latest images.

    What is known from files is computed anew only when one of them has changed.
    """
    experiment = data.experiment(name)
    row = dict(data.kept(name, _stamps(experiment, judged), lambda: _row(data, name, judged)))
    owner = owner_of(data, experiment)
    complete = row.pop("complete")
    row["state"] = (
        "running" if owner
        else "failed" if row["error"]
        else "finished" if complete
        else "stopped"
    )  # fmt: skip
    row["owner"] = owner and f"process {owner[0]} on {owner[1]}"
    row["stoppable"] = control and owner is not None and owner[1] == socket.gethostname()
    if owner:
        row |= at_work(data, name)
    return row


def _row(data: Data, name: str, judged: Path | None) -> dict[str, Any]:
    """What the files say, apart from whether a process is at work."""
    experiment, settings = data.experiment(name), data.settings(name)
    rounds, trains = experiment.rounds(), _trains(experiment)
    finished = _finished(experiment, settings, trains)
    every = flat(settings.to_dict())
    return {
        "name": name,
        "error": last_error.last(experiment.folder),
        "method": settings.train.method if trains else "sampling only",
        "round": max(rounds, default=None),
        "rounds": {
            "done": len(finished),
            "total": settings.train.num_epochs - settings.train.begin_epoch,
        },
        "compared": bool(experiment.comparisons()),
        "complete": bool(rounds) and settings.train.num_epochs - 1 in finished,
        "changed": max(_time(r.folder) for r in rounds.values()) if rounds else 0.0,
        "settings": {k: v for k, v in every.items() if k not in ASIDE},
        "seed": settings.seed,
        "same": _digest({k: v for k, v in every.items() if k not in FREE and k != "seed"}),
        **figures(data, experiment, judged),
    }


def _digest(settings: dict[str, Any]) -> str:
    """The same for runs that differ in their seed only."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _judged(results: Path, name: str) -> Path:
    return results / f"{Path(name).name}.json"


def chosen_curves(
    data: Data, results: Path, names: list[str], keys: list[str]
) -> dict[str, dict[str, Any]]:
    """Per run: which curves there are, and the points of those asked for."""
    found = {}
    for name in names:
        every = curves(data, data.experiment(name), _judged(results, name))
        found[name] = {
            "keys": list(every),
            "curves": {key: every[key] for key in keys if key in every},
        }
    return found


def details(data: Data, name: str) -> dict[str, Any]:
    """Everything about one run that the table has no room for."""
    experiment, settings = data.experiment(name), data.settings(name)
    error = experiment.folder / last_error.FILE
    note = data.read(error, read_json) if error.exists() else {}
    return {
        "settings": flat(settings.to_dict()),
        "command": command(settings, _trains(experiment)),
        "error": {k: note[k] for k in ("time", "message", "command") if k in note},
        "traceback": "".join(note.get("traceback", [])),
        **at_work(data, name),
    }


def command_of(data: Data, name: str, **changed: Any) -> str:
    """The command of an experiment, with some settings changed."""
    settings = replace(data.settings(name), **changed)
    return command(settings, _trains(data.experiment(name)))


def command(settings: Settings, trains: bool) -> str:
    """The command of a run: the preset that is nearest to it, and all settings that differ."""
    given = flat(settings.to_dict())
    presets = {name: flat(preset().to_dict()) for name, preset in PRESETS.items()}
    changed = {
        name: {key: value for key, value in given.items() if value != preset[key]}
        for name, preset in presets.items()
    }
    nearest = min(changed, key=lambda name: len(changed[name]))
    words = ["python3", "run_train.py" if trains else "run_sample.py"]
    words += [] if nearest == next(iter(PRESETS)) else ["--config", nearest]
    words += [f"--config.{key}={value}" for key, value in changed[nearest].items()]
    return shlex.join(words)


def _stamps(experiment: Experiment, judged: Path | None) -> tuple[object, ...]:
    """Changes with any file that a row is made from."""
    files = [experiment.folder / name for name in OF_A_RUN]
    for number, round_ in experiment.rounds().items():
        files += [round_.folder / name for name in OF_A_ROUND]
        files.append(experiment.folder / f"checkpoints/epoch{number}/state.json")
    files += [round_.scores_file("images") for round_ in experiment.comparisons().values()]
    return tuple(_stamp(path) for path in [*files, *([judged] if judged else [])])


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        return stamp(path)
    return None


def at_work(data: Data, name: str) -> dict[str, Any]:
    """Stages of the current round, time left, what is waited for, and the latest images."""
    experiment, settings = data.experiment(name), data.settings(name)
    rounds, trains = experiment.rounds(), _trains(experiment)
    if not rounds:
        return {"stages": [], "left": {"stage": None, "seconds": None, "run": None}, "latest": None}
    number = max(rounds)
    stages = _stages(experiment, rounds[number], settings, trains)
    return {
        "stages": [{"name": s.name, "done": s.done, "total": s.total} for s in stages],
        "left": _left(data, experiment, settings, stages, _finished(experiment, settings, trains)),
        "waits": _waits(data, name, settings, stages),
        "latest": _latest(rounds[number]),
    }


def _waits(data: Data, name: str, settings: Settings, stages: list[Stage]) -> str:
    """Whose scores the run waits for; empty if it does not wait."""
    at = next((n for n, s in enumerate(stages) if s.done < s.total), None)
    if (
        at is None
        or at == 0
        or not stages[at].name.startswith("scoring")
        or settings.eval.in_process
    ):
        return ""
    missing = f"{stages[at].total - stages[at].done} scores"
    reward = settings.eval.reward
    if reward == HUMAN:
        return f"waits for {missing} by people: see the tab Rate"
    if scorer_alive(data.root / Path(name).parent, Path(name).name, reward):
        return f"waits for {missing}; a scorer is at work"
    return (
        f"waits for {missing}, but no scorer is at work; start it with {scorer_command(settings)}"
    )


def _latest(round_: Round) -> dict[str, Any] | None:
    """The newest images of the stage that makes some, newest first."""
    for kind in ("target_images", "images"):
        if times := _pngs(round_.folder / kind):
            newest = sorted(times, key=lambda pair: (-pair[0], pair[1]))[:LATEST]
            images = [int(name.removesuffix(".png")) for _, name in newest]
            return {"round": round_.folder.name, "kind": kind, "images": images}
    return None


def _pngs(folder: Path) -> list[tuple[float, str]]:
    """Time and name of every picture in a folder; none if it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [(e.stat().st_mtime, e.name) for e in entries if PNG.fullmatch(e.name)]


def _trains(experiment: Experiment) -> bool:
    """Whether the experiment is trained, not only sampled."""
    names = ("checkpoints", "metrics.jsonl", "compare")
    return any((experiment.folder / name).exists() for name in names)


def _stages(experiment: Experiment, round_: Round, settings: Settings, trains: bool) -> list[Stage]:
    planned = len(round_.sample_prompts())
    pairs = round_.pairs()
    count = len(pairs) if pairs is not None else planned // 2
    stages = [
        Stage("sampling", len(present(round_.folder / "images")), planned, round_.folder / "images")
    ]
    stages.append(Stage("scoring", len(round_.scores("images")), planned))
    if settings.train.pairs != "naive" or not trains:
        folder = round_.folder / "target_images"
        stages.append(Stage("fusing", len(present(folder)), count, folder))
        stages.append(Stage("scoring targets", len(round_.scores("target_images")), count))
    if trains:
        stages.append(_training(experiment, round_, settings))
    return stages


def _training(experiment: Experiment, round_: Round, settings: Settings) -> Stage:
    """Optimiser steps of the round."""
    total = settings.train.num_inner_epochs * settings.train.updates_per_inner_epoch
    checkpoints = experiment.folder / "checkpoints"
    done = 0
    if (checkpoints / round_.folder.name / "state.json").exists():
        done = total
    elif (within := checkpoints / "within" / "state.json").exists():
        state = read_json(within)
        done = len(state["rows"]) if f"epoch{state['round']}" == round_.folder.name else 0
    return Stage("training", done, total)


def _finished(experiment: Experiment, settings: Settings, trains: bool) -> list[int]:
    """Rounds that are finished."""
    asked = range(settings.train.begin_epoch, settings.train.num_epochs)
    name = "checkpoints/epoch{}/state.json" if trains else "epoch{}/adoption.json"
    return [k for k in asked if (experiment.folder / name.format(k)).exists()]


def owner_of(data: Data, experiment: Experiment) -> tuple[int, str] | None:
    """Process and host of a run at work, from the note beside its lock; the lock is not touched."""
    note = experiment.folder / ".run.lock.json"
    try:
        owner = data.read(note, load_json)
        process, host = int(owner["process"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host == socket.gethostname() and not alive(process):
        return None  # it was killed
    return process, host


def _left(
    data: Data,
    experiment: Experiment,
    settings: Settings,
    stages: list[Stage],
    finished: list[int],
) -> dict[str, Any]:
    """Seconds left of the current stage and of the run; None if not known yet."""
    at_work = next((s for s in stages if s.done < s.total), None)
    stage = None
    if at_work and at_work.folder and (each := seconds_each(at_work.folder)):
        stage = each * (at_work.total - at_work.done)
    known = _durations(data, experiment, finished)
    whole = None
    if known:
        total = settings.train.num_epochs - settings.train.begin_epoch
        current = [r.folder for k, r in experiment.rounds().items() if k not in finished]
        spent = time.time() - _time(current[-1] / "manifest.json") if current else 0.0
        mean = sum(known) / len(known)
        whole = max(mean * (total - len(finished)) - min(spent, mean), stage or 0.0)
    return {"stage": at_work.name if at_work else None, "seconds": stage, "run": whole}


def _durations(data: Data, experiment: Experiment, finished: list[int]) -> list[float]:
    """Seconds that finished rounds took: from metrics.jsonl, else from the files' times."""
    noted = {
        row["round"]: sum(row["seconds"].values())
        for row in metrics(data, experiment)
        if row.get("kind") == "round"
    }
    if noted:
        return list(noted.values())
    folders = [experiment.round(k).folder for k in finished]
    return [_time(f / "adoption.json") - _time(f / "manifest.json") for f in folders]


def seconds_each(folder: Path) -> float | None:
    """Mean seconds between the latest files, without pauses; None for fewer than two."""
    times = sorted(time for time, _ in _pngs(folder))[-RECENT:]
    gaps = [b - a for a, b in itertools.pairwise(times) if b - a < PAUSE_SECONDS]
    return sum(gaps) / len(gaps) if gaps else None


def _time(path: Path) -> float:
    return path.stat().st_mtime
