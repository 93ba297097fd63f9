"""Curves of an experiment, from metrics.jsonl, scores, adoption and the judge's file."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json
from dfusion.view.folders import Data

Points = list[list[float]]  # [x, y]
# Numbers in metrics.jsonl that are no curves of their own, or curves that the files give already.
KNOWN = {"schema", "round", "inner_epoch", "images", "pairs", "reward_mean", "adopted"}


def curves(data: Data, experiment: Experiment, judged: Path | None) -> dict[str, Points]:
    """Named curves, without empty ones.

    judged: a file {"rounds": [{"round", "judge"}], "same_noise": [{"rounds", "judge"}]}, as
    experiments.runs.alignment writes it.
    """
    rows = metrics(data, experiment)
    found = {
        "score": _scores(data, experiment.rounds()),
        "score_same_noise": _scores(data, experiment.comparisons()),
        "adopted": _adopted(data, experiment.rounds()),
    }
    if judged and judged.is_file():
        figures = json.loads(judged.read_text(encoding="utf-8"))
        found["judge"] = _judge(figures.get("rounds"), "round")
        found["judge_same_noise"] = _judge(figures.get("same_noise"), "rounds")
    for kind in ("round", "update"):
        found |= _of_metrics([row for row in rows if row.get("kind") == kind], kind)
    return {name: points for name, points in found.items() if points}


def figures(data: Data, experiment: Experiment, judged: Path | None) -> dict[str, float | None]:
    """The latest score, judge's figure and rate of adoption, and how much the score has risen.

    On images of the same noise where there are some, else on each round's own samples.
    """
    every = curves(data, experiment, judged)
    score = every.get("score_same_noise") or every.get("score", [])
    judge = every.get("judge_same_noise") or every.get("judge", [])
    adopted = every.get("adopted", [])
    return {
        "score": score[-1][1] if score else None,
        "judge": judge[-1][1] if judge else None,
        "adopted": adopted[-1][1] if adopted else None,
        "gain": score[-1][1] - score[0][1] if len(score) > 1 else None,
    }


def _of_metrics(rows: list[dict[str, Any]], kind: str) -> dict[str, Points]:
    """A curve for every number in the rows of metrics.jsonl; numbers in groups are "group.name".

    Updates are counted through all rounds.
    """
    points: dict[str, list[tuple[Any, Any]]] = {}
    for n, row in enumerate(rows):
        for key, value in _numbers(row):
            if key not in KNOWN:
                x = n if kind == "update" else row.get("round")
                points.setdefault(f"{kind}.{key}", []).append((x, value))
    return {key: _points(pairs) for key, pairs in points.items()}


def _numbers(row: dict[str, Any], group: str = "") -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{group}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{group}{key}", value


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
