"""Runs as plain data, from what is on disk: progress of every stage, curves, time left."""

import itertools
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfusion.errors import UserError
from dfusion.report.rounds import present
from dfusion.settings.schema import Settings
from dfusion.storage import last_error
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import alive, read_json
from dfusion.view.curves import curves, metrics
from dfusion.view.folders import Data

RECENT = 64  # files whose times tell the speed of a stage
PAUSE_SECONDS = 900.0  # a longer gap between two files is a pause, not work


@dataclass(frozen=True)
class Stage:
    """done of total; folder: where its files appear, for its speed."""

    name: str
    done: int
    total: int
    folder: Path | None = None


def overview(data: Data, results: Path) -> list[dict[str, Any]]:
    """Every experiment; for one that cannot be read, only its name and the problem.

    results: folder with the judge's figures, <experiment>.json.
    """
    rows = []
    for name in data.names():
        try:
            rows.append(run(data, name, results / f"{Path(name).name}.json"))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            rows.append({"name": name, "problem": str(error) or repr(error)})
    return rows


def run(data: Data, name: str, judged: Path | None = None) -> dict[str, Any]:
    """One experiment: main settings, stages of the current round, curves, time left."""
    experiment, settings = data.experiment(name), data.settings(name)
    rounds = experiment.rounds()
    number = max(rounds, default=None)
    trains = _trains(experiment)
    stages = [] if number is None else _stages(experiment, rounds[number], settings, trains)
    owner = _owner(experiment.folder / ".run.lock.json")
    finished = _finished(experiment, settings, trains)
    done = len(finished)
    complete = number is not None and settings.train.num_epochs - 1 in finished
    state = "running" if owner else "finished" if complete else "stopped"
    left = _left(data, experiment, settings, stages, finished) if owner else {}
    return {
        "name": name,
        "state": state,
        "owner": owner,
        "error": last_error.last(experiment.folder),
        "method": settings.train.method if trains else "sampling only",
        "pairs": settings.train.pairs,
        "reward": settings.eval.reward,
        "round": number,
        "rounds": {"done": done, "total": settings.train.num_epochs - settings.train.begin_epoch},
        "stages": [{"name": s.name, "done": s.done, "total": s.total} for s in stages],
        "left": left,
        "curves": curves(data, experiment, judged),
    }


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


def _owner(note: Path) -> str | None:
    """Who runs the experiment, from the note beside its lock; the lock is not touched."""
    try:
        owner = json.loads(note.read_text())
        process, host = int(owner["process"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host == socket.gethostname() and not alive(process):
        return None  # it was killed
    return f"process {process} on {host}"


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
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        times = sorted(e.stat().st_mtime for e in entries if e.name.endswith(".png"))[-RECENT:]
    gaps = [b - a for a, b in itertools.pairwise(times) if b - a < PAUSE_SECONDS]
    return sum(gaps) / len(gaps) if gaps else None


def _time(path: Path) -> float:
    return path.stat().st_mtime
