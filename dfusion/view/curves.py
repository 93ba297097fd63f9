"""Curves of an experiment, from metrics.jsonl, scores, adoption and the judge's file."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json
from dfusion.view.folders import Data

Points = list[list[float]]  # [x, y]


def curves(data: Data, experiment: Experiment, judged: Path | None) -> dict[str, Points]:
    """Named curves, without empty ones.

    judged: a file {"rounds": [{"round", "judge"}], "same_noise": [{"rounds", "judge"}]}, as
    experiments.runs.alignment writes it.
    """
    rows = metrics(data, experiment)
    updates = [row for row in rows if row.get("kind") == "update"]
    rounds = [row for row in rows if row.get("kind") == "round"]
    found = {
        "score": _scores(data, experiment.rounds()),
        "score_same_noise": _scores(data, experiment.comparisons()),
        "adopted": _adopted(data, experiment.rounds()),
        "coverage": _points((r.get("round"), r.get("mask_coverage")) for r in rounds),
        "noise_norm": _points((r.get("round"), r.get("noise_norm")) for r in rounds),
        "preferred": _points((n, row.get("preferred")) for n, row in enumerate(updates)),
        "loss": _points((n, row.get("loss")) for n, row in enumerate(updates)),
        "grad_norm": _points((n, row.get("grad_norm")) for n, row in enumerate(updates)),
    }
    if judged and judged.is_file():
        figures = json.loads(judged.read_text(encoding="utf-8"))
        found["judge"] = _judge(figures.get("rounds"), "round")
        found["judge_same_noise"] = _judge(figures.get("same_noise"), "rounds")
    return {name: points for name, points in found.items() if points}


def metrics(data: Data, experiment: Experiment) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; lines that do not parse are skipped."""
    path = experiment.folder / "metrics.jsonl"
    return data.read(path, _lines) if path.exists() else []


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _scores(data: Data, rounds: dict[int, Round]) -> Points:
    """Mean score of every round whose images are all scored."""
    means: Points = []
    for number, round_ in rounds.items():
        path = round_.scores_file("images")
        if not path.exists():
            continue
        scores = data.read(path, read_json)["scores"].values()
        manifest = data.read(round_.folder / "manifest.json", read_json)
        if len(scores) == len(manifest["samples"]):
            means.append([number, math.fsum(scores) / len(scores)])
    return means


def _adopted(data: Data, rounds: dict[int, Round]) -> Points:
    rates: Points = []
    for number, round_ in rounds.items():
        path = round_.folder / "adoption.json"
        if path.exists() and (rows := data.read(path, read_json)["pairs"]):
            rates.append([number, sum(row["adopted"] for row in rows) / len(rows)])
    return rates


def _judge(rows: object, x: str) -> Points:
    rows = rows if isinstance(rows, list) else []
    return _points((row.get(x), row.get("judge")) for row in rows if isinstance(row, dict))


def _points(pairs: Iterable[tuple[Any, Any]]) -> Points:
    """Pairs of finite numbers."""
    good = (int, float)
    return [
        [x, y]
        for x, y in pairs
        if isinstance(x, good) and isinstance(y, good) and math.isfinite(x) and math.isfinite(y)
    ]
