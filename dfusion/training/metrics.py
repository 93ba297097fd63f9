"""data/<exp>/metrics.jsonl: one row for every update and one for every round; no service needed."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfusion.errors import UserError
from dfusion.storage.experiment import WATCH, Round
from dfusion.storage.files import SCHEMA, read_tensors, write_bytes
from dfusion.training.pairs import TrainingRound


def append(path: Path, number: int, rows: list[dict[str, Any]]) -> None:
    """Append a round's rows, replacing those that an interrupted run left."""
    kept = [row for row in read(path) if row["round"] < number]
    new = [{"schema": SCHEMA, **row} for row in rows]
    write_bytes(path, "".join(f"{json.dumps(row)}\n" for row in [*kept, *new]).encode())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows so far; none without the file. Raises UserError naming a line that is no row."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows = []
    for n, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and type(row["round"]) is int
        except (ValueError, KeyError, RecursionError):
            good = False
        if not good:
            raise UserError(f"{path}: line {n} is no row of metrics; remove that line")
        if row.get("schema", SCHEMA) != SCHEMA:
            raise UserError(
                f"{path}: line {n} is of schema version {row['schema']}, not {SCHEMA}; use the "
                "version of this software that wrote it, or choose another --config.exp_name"
            )
        rows.append(row)
    return rows


def round_row(
    number: int,
    data: TrainingRound,
    seconds: Mapping[str, float],
    coverage_of: frozenset[int],
    updates: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Statistics of a round. seconds: per stage. updates: the rows of its optimiser steps.

    Means and standard deviations are those of the round's samples, made before its update.
    coverage_of: indices of the fused steps.
    """
    by_prompt = data.round.scores_by_text()
    every = [score for scores in by_prompt.values() for score in scores]
    return {
        "kind": "round",
        "round": number,
        "reward_mean": float(np.mean(every)),
        "reward_std": float(np.std(every)),
        "reward_by_prompt": {
            text: [float(np.mean(values)), float(np.std(values))]
            for text, values in by_prompt.items()
        },
        **_other_scores(data.round),
        "images": len(every),
        "pairs": len(data.pairs),
        "skipped_updates": sum(row["skipped"] for row in updates),
        "adopted": sum(data.fused) / max(1, len(data.pairs)),
        "mask_coverage": mask_coverage(data.round, len(data.pairs), coverage_of),
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "peak_memory_gib": peak_memory(),
    }


def _other_scores(round_: Round) -> dict[str, Any]:
    """Means of a weighted sum's parts, and of the scorer that training never sees, if any."""
    found: dict[str, Any] = {}
    if parts := round_.score_parts("images"):
        found["reward_parts"] = {
            name: float(np.mean([*given.values()])) for name, given in parts.items()
        }
    if watched := [*round_.scores(WATCH).values()]:
        found["watch_mean"] = float(np.mean(watched))
        found["watch_std"] = float(np.std(watched))
    return found


def mask_coverage(round_: Round, pairs: int, steps: frozenset[int]) -> float | None:
    """Mean share of the grid that the targets' masks cover at steps (indices); None if unknown."""
    paths = [round_.target(p) for p in range(pairs)]
    if not steps or not paths or not all(path.exists() for path in paths):
        return None
    chosen = sorted(steps)
    shares = [read_tensors(path)["masks"][chosen].float().mean() for path in paths]
    return float(torch.stack(shares).mean())


def peak_memory() -> float:
    """Peak GiB so far: of GPU memory if a GPU is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
