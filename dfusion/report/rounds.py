"""What the pages show of a round: its samples, pairs and comparisons, with scores.

The browser app asks for it, and the page of an experiment holds it.
"""

import math
import re
from collections.abc import Iterable, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dfusion.settings.schema import Settings
from dfusion.settings.steps import parse_steps
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, read_picture, stamp

SIDES = ("base", "reference", "target")
_PNG = re.compile(r"(\d{5,})\.png")


def settings_of(experiment: Experiment) -> Settings:
    """The settings of an experiment; the defaults if its config.json is missing or foreign."""
    path = experiment.config_file
    try:
        return Settings.of(read_json(path).get("settings", {}) if path.exists() else {})
    except TypeError:
        return Settings()


def has_begun(round_: Round) -> bool:
    return (round_.folder / "manifest.json").exists()


def present(folder: Path) -> set[int]:
    """Indices of the PNGs in a folder; empty if it does not exist."""
    if not folder.is_dir():
        return set()
    return {int(m[1]) for path in folder.iterdir() if (m := _PNG.fullmatch(path.name))}


def word(text: str, name: str | int) -> str:
    """An item as text: a word position becomes the word."""
    words = text.split()
    return words[name] if isinstance(name, int) and 0 <= name < len(words) else str(name)


def round_view(round_: Round, settings: Settings) -> dict[str, Any]:
    """Samples and pairs of a round with scores; null for what does not exist yet."""
    steps = settings.sample.num_steps
    fused = parse_steps(settings.fusion.steps, steps)
    manifest = round_.manifest() or {"prompts": [], "samples": [], "made_with": {}}
    prompts = [
        {
            "text": p["text"],
            "items": [
                {"word": word(p["text"], i["name"]), "threshold": i["threshold"]}
                for i in p["items"]
            ],
        }
        for p in manifest["prompts"]
    ]
    here, scores = present(round_.folder / "images"), finite(round_.scores("images"))
    samples = [
        {"i": i, "prompt": prompt, "score": scores.get(i)}
        for i, prompt in enumerate(manifest["samples"])
        if i in here
    ]
    pairs = _pairs(round_, prompts, scores, steps, fused)
    made = manifest["made_with"]
    return {
        "planned": len(manifest["samples"]),
        "prompts": prompts,
        "samples": samples,
        "pairs": pairs,
        "summary": summary(samples, pairs),
        "by_prompt": [
            {"prompt": p, **summary(_of(p, samples), _of(p, pairs))} for p in range(len(prompts))
        ],
        "steps": steps,
        "fused": sorted(fused, reverse=True),
        "reward": round_.scored_by("images") or settings.eval.reward,
        "adoption": {"rule": settings.pair.adoption, "threshold": settings.pair.adoption_threshold},
        "noise": {"seed": made.get("seed"), "round": made.get("round")},
        "kept": round_.states_kept,
    }


def _pairs(
    round_: Round,
    prompts: list[dict[str, Any]],
    scores: dict[int, float],
    steps: int,
    fused: Set[int],
) -> list[dict[str, Any]]:
    numbers = {p["text"]: n for n, p in enumerate(prompts)}
    targets, decided = finite(round_.scores("target_images")), round_.adoption() or []
    there, masks = present(round_.folder / "target_images"), present(round_.folder / "masks")
    rows = []
    for n, pair in enumerate(round_.pairs() or ()):
        prompt, row = numbers.get(pair.prompt), decided[n] if n < len(decided) else {}
        # What was decided on, which is in the scores' files as well unless they were replaced.
        base = row.get("base", scores.get(pair.base))
        reference = row.get("reference", scores.get(pair.reference))
        target = row.get("target", targets.get(n))
        items = len(prompts[prompt]["items"]) if prompt is not None else 0
        mask = read_mask(round_.image("masks", n), items, steps, fused) if n in masks else None
        rows.append(
            {
                "n": n,
                "prompt": prompt,
                "base": {"i": pair.base, "score": base},
                "reference": {"i": pair.reference, "score": reference},
                "target": {"there": n in there, "score": target},
                "mask": None if mask is None else float(mask.mean()),
                "gain": None if target is None or base is None else target - base,
                "adopted": row.get("adopted"),
            }
        )
    return rows


def read_mask(path: Path, items: int, steps: int, fused: Set[int]) -> np.ndarray | None:
    """The mask of a mask sheet, mean over the fused steps (gh, gw); None for any other shape."""
    return _read_mask(path, stamp(path), items, steps, tuple(sorted(fused)))


@lru_cache(maxsize=4096)
def _read_mask(
    path: Path, file: object, items: int, steps: int, fused: tuple[int, ...]
) -> np.ndarray | None:
    """file: a stamp, so that a file that was replaced is read again."""
    sheet = np.asarray(read_picture(path).convert("L"))
    height, width = sheet.shape
    if height % (items + 1) or width % steps:
        return None
    gh, gw = height // (items + 1), width // steps
    on = sheet[:gh].reshape(gh, steps, gw).transpose(1, 0, 2) > 127  # (T, gh, gw)
    return on[[steps - t for t in fused]].mean(0) if fused else np.zeros((gh, gw))


def summary(samples: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and means of a round or of one of its prompts; None if not known yet."""
    decided = [p["adopted"] for p in pairs if p["adopted"] is not None]
    means = {side: _mean(p[side]["score"] for p in pairs) for side in SIDES}
    return {
        "images": len(samples),
        "pairs": len(pairs),
        "targets": sum(p["target"]["there"] for p in pairs),
        "mean": {"images": _mean(s["score"] for s in samples), **means},
        "gain": _mean(p["gain"] for p in pairs),
        "decided": len(decided),
        "adopted": sum(decided),
        "coverage": _mean(p["mask"] for p in pairs),
    }


def comparisons(chosen: Sequence[tuple[str, str, Round]]) -> dict[str, Any]:
    """Images of several comparisons (experiment, "compare/epoch3", round), in rows of equal noise.

    A row is one (seed, round of the noise, index, prompt); columns without it have null.
    """
    columns: list[dict[str, Any]] = []
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for c, (name, which, round_) in enumerate(chosen):
        made = (round_.manifest() or {"made_with": {}})["made_with"]
        here, scores = present(round_.folder / "images"), finite(round_.scores("images"))
        columns.append({"name": name, "round": which, "weights": made.get("weights")})
        for i, prompt in enumerate(round_.texts_to_score("images")):
            key = (prompt, made.get("seed"), made.get("round"), i)
            row = rows.setdefault(key, {"prompt": prompt, "seed": made.get("seed"), "cells": {}})
            row["cells"][c] = {"i": i, "there": i in here, "score": scores.get(i)}
    listed = [
        {**row, "cells": [row["cells"].get(c) for c in range(len(chosen))]} for row in rows.values()
    ]
    return {"columns": columns, "rows": listed}


def finite(scores: dict[int, float]) -> dict[int, float]:
    """The scores that are numbers: JSON has no other."""
    return {i: score for i, score in scores.items() if math.isfinite(score)}


def _of(prompt: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["prompt"] == prompt]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
