"""A round as lists of samples, pairs and comparisons. Image files are not read."""

from typing import Any

from dfusion.method.prompts import Prompt
from dfusion.settings.steps import parse_steps
from dfusion.storage.experiment import Experiment, Round
from dfusion.view.folders import Data, present


def catalogue(data: Data) -> list[dict[str, Any]]:
    """Experiments with the rounds and comparisons that have begun, latest first."""
    rows = []
    for name in sorted(data.names(), key=lambda n: -_begun(data.experiment(n))):
        experiment = data.experiment(name)
        rows.append(
            {
                "name": name,
                "rounds": [k for k, r in experiment.rounds().items() if _has_begun(r)],
                "comparisons": [k for k, r in experiment.comparisons().items() if _has_begun(r)],
            }
        )
    return rows


def _has_begun(round_: Round) -> bool:
    return (round_.folder / "manifest.json").exists()


def _begun(experiment: Experiment) -> float:
    """When the last round began, or the experiment itself if it has none."""
    rounds = [r.folder / "manifest.json" for r in experiment.rounds().values()]
    times = [path.stat().st_mtime for path in rounds if path.exists()]
    return max(times, default=experiment.config_file.stat().st_mtime)


def round_view(data: Data, name: str, which: str) -> dict[str, Any]:
    """Samples and pairs of a round with scores; null for what does not exist yet."""
    round_, settings = data.round(name, which), data.settings(name)
    steps = settings.sample.num_steps
    manifest = round_.manifest() or {"prompts": [], "samples": []}
    prompts = {p["text"]: n for n, p in enumerate(manifest["prompts"])}
    here, scores = present(round_.folder / "images"), round_.scores("images")
    samples = [
        {"i": i, "prompt": prompt, "score": scores.get(i)}
        for i, prompt in enumerate(manifest["samples"])
        if i in here
    ]
    return {
        "planned": len(manifest["samples"]),
        "prompts": [
            {"text": p["text"], "items": [word(p["text"], i["name"]) for i in p["items"]]}
            for p in manifest["prompts"]
        ],
        "samples": samples,
        "pairs": _pairs(round_, prompts, scores),
        "steps": steps,
        "fused": sorted(parse_steps(settings.fusion.steps, steps), reverse=True),
        "reward": settings.eval.reward,
        "kept": round_.states_kept,
    }


def _pairs(
    round_: Round, prompts: dict[str, int], scores: dict[int, float]
) -> list[dict[str, Any]]:
    targets, decided = round_.scores("target_images"), round_.adoption() or []
    fused, masks = present(round_.folder / "target_images"), present(round_.folder / "masks")
    rows = []
    for n, pair in enumerate(round_.pairs() or ()):
        base, reference, target = scores.get(pair.base), scores.get(pair.reference), targets.get(n)
        rows.append(
            {
                "n": n,
                "prompt": prompts.get(pair.prompt),
                "base": {"i": pair.base, "score": base},
                "reference": {"i": pair.reference, "score": reference},
                "target": {"there": n in fused, "score": target},
                "mask": n in masks,
                "gain": None if target is None or base is None else target - base,
                "adopted": decided[n]["adopted"] if n < len(decided) else None,
            }
        )
    return rows


def comparisons(data: Data, chosen: list[tuple[str, str]]) -> dict[str, Any]:
    """Images of several comparisons (experiment, "compare/epoch3"), in rows of equal noise.

    A row is one (seed, round of the noise, index, prompt); columns without it have null.
    """
    columns: list[dict[str, Any]] = []
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for c, (name, which) in enumerate(chosen):
        round_ = data.round(name, which)
        made = (round_.manifest() or {"made_with": {}})["made_with"]
        here, scores = present(round_.folder / "images"), round_.scores("images")
        columns.append({"name": name, "round": which, "weights": made.get("weights")})
        for i, prompt in enumerate(round_.texts_to_score("images")):
            key = (prompt, made.get("seed"), made.get("round"), i)
            row = rows.setdefault(key, {"prompt": prompt, "seed": made.get("seed"), "cells": {}})
            row["cells"][c] = {"i": i, "there": i in here, "score": scores.get(i)}
    listed = [
        {**row, "cells": [row["cells"].get(c) for c in range(len(chosen))]} for row in rows.values()
    ]
    return {"columns": columns, "rows": listed}


def word(text: str, name: str | int) -> str:
    """An item as text: a word position becomes the word."""
    words = text.split()
    return words[name] if isinstance(name, int) and 0 <= name < len(words) else str(name)


def prompt_of(round_: Round, text: str) -> tuple[Prompt | None, list[int]]:
    """A prompt of a round by its text, and its samples' indices."""
    prompts = round_.sample_prompts()
    indices = [i for i, prompt in enumerate(prompts) if prompt.text == text]
    return (prompts[indices[0]] if indices else None), indices
