"""The page and the contact sheet of an experiment: data/<exp>/index.html and pairs.png.

Both are made from whatever is on disk, at any stage of a run; `dfusion report data/<exp>`
makes them again. The page holds its data inline and links to the round's PNGs by relative path.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from dfusion.method.prompts import Prompt
from dfusion.report.contact_sheet import SIDES, contact_sheet
from dfusion.settings.steps import parse_steps
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, read_picture, write_bytes

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")
KINDS = ("images", "base_images", "reference_images", "target_images", "masks")
Number = Callable[[Prompt], int]  # a prompt's place in the page's list of prompts


def write(folder: Path) -> list[Path]:
    """Write index.html and pairs.png of the experiment in `folder`; returns their paths."""
    data = collect(folder)
    page, sheet = folder / "index.html", folder / "pairs.png"
    template = TEMPLATE.read_text(encoding="utf-8")
    template = template.replace("__SCRIPT__", SCRIPT.read_text(encoding="utf-8"))
    write_bytes(page, template.replace("__DATA__", inline_json(data)).encode())
    buffer = io.BytesIO()
    contact_sheet(folder, data).save(buffer, format="PNG")
    write_bytes(sheet, buffer.getvalue())
    return [page, sheet]


def inline_json(value: object) -> str:
    """JSON that is safe inside a script element: no <, > or & whatever the prompts say."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def collect(folder: Path) -> dict[str, Any]:
    """Everything that the page shows. Paths are relative to `folder`; only existing files."""
    experiment = Experiment(folder)
    config = experiment.config_file
    settings = read_json(config).get("settings", {}) if config.exists() else {}
    numbers: dict[str, int] = {}
    prompts: list[dict[str, Any]] = []

    def number(prompt: Prompt) -> int:
        if prompt.text not in numbers:
            numbers[prompt.text] = len(prompts)
            prompts.append({"text": prompt.text, "items": _items(prompt)})
        return numbers[prompt.text]

    rounds = [_round(k, r, settings, number) for k, r in experiment.rounds().items()]
    return {
        "name": folder.resolve().name,
        "settings": settings,
        "prompts": prompts,
        "rounds": [r for r in rounds if r["planned"] or r["images"] or r["pairs"]],
        "comparisons": [_comparison(k, r, number) for k, r in experiment.comparisons().items()],
    }


def _comparison(k: int, round_: Round, number: Number) -> dict[str, Any]:
    """Samples of the policy after k rounds of training; image i has the same noise in each."""
    here, scores = {"images": _present(round_.folder / "images")}, round_.scores("images")
    images = [
        _shown(round_, here, "images", i, scores.get(i)) | {"prompt": number(prompt)}
        for i, prompt in enumerate(round_.sample_prompts())
    ]
    for image in images:
        image["src"] = image["src"] and f"compare/{image['src']}"
    return {"number": k, "images": images, "mean": _mean(image["score"] for image in images)}


def _items(prompt: Prompt) -> list[dict[str, Any]]:
    """Words and thresholds; an item given as a word position is shown as that word."""
    words = prompt.text.split()
    return [
        {
            "word": words[i.name]
            if isinstance(i.name, int) and 0 <= i.name < len(words)
            else str(i.name),
            "threshold": i.threshold,
        }
        for i in prompt.items
    ]


def _round(k: int, round_: Round, settings: dict[str, Any], number: Number) -> dict[str, Any]:
    here = {kind: _present(round_.folder / kind) for kind in KINDS}
    prompts = round_.sample_prompts()
    numbers = [number(p) for p in prompts]
    scores = round_.scores("images")
    images = [
        _shown(round_, here, "images", i, scores.get(i)) | {"prompt": numbers[i]}
        for i in range(len(prompts))
        if i in here["images"]
    ]
    pairs = _pairs(round_, here, {p.text: p for p in prompts}, settings, number)
    return {
        "number": k,
        "planned": len(prompts),
        "reward": _reward(round_),
        "images": images,
        "pairs": pairs,
        "summary": summary(images, pairs),
        "by_prompt": [
            {"prompt": p, **summary(_of(p, images), _of(p, pairs))}
            for p in dict.fromkeys([*numbers, *(pair["prompt"] for pair in pairs)])
        ],
    }


def _pairs(
    round_: Round,
    here: dict[str, set[int]],
    prompts: dict[str, Prompt],
    settings: dict[str, Any],
    number: Number,
) -> list[dict[str, Any]]:
    scores, targets = round_.scores("images"), round_.scores("target_images")
    decided = round_.adoption() or []
    steps = settings.get("sample", {}).get("num_steps")
    text = settings.get("fusion", {}).get("steps")
    fused = None if text is None or steps is None else parse_steps(text, steps)
    rows = []
    for n, pair in enumerate(round_.pairs() or ()):
        row = decided[n] if n < len(decided) else {}
        prompt = prompts.get(pair.prompt, Prompt(pair.prompt, ()))
        shown: dict[str, Any] = {"n": n, "prompt": number(prompt), "adopted": row.get("adopted")}
        for side, index in (("base", pair.base), ("reference", pair.reference)):
            copied = n in here[f"{side}_images"]
            kind, at = (f"{side}_images", n) if copied else ("images", index)
            score = row.get(side, scores.get(index))
            shown[side] = _shown(round_, here, kind, at, score) | {"index": index}
        score = row.get("target", targets.get(n))
        shown["target"] = _shown(round_, here, "target_images", n, score)
        sheet = _shown(round_, here, "masks", n, None)["src"]
        path = round_.image("masks", n)
        shown["mask"] = sheet and read_mask(path, sheet, steps, len(prompt.items), fused)
        rows.append(shown)
    return rows


def _shown(
    round_: Round, here: dict[str, set[int]], kind: str, index: int, score: float | None
) -> dict[str, Any]:
    """An image and its score; src is None if the image does not exist (yet)."""
    src = f"{round_.folder.name}/{kind}/{index:05d}.png" if index in here[kind] else None
    return {"index": index, "src": src, "score": _finite(score)}


def _of(prompt: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["prompt"] == prompt]


def _present(folder: Path) -> set[int]:
    """Indices of the five-digit PNGs in a folder."""
    if not folder.is_dir():
        return set()
    return {int(p.stem) for p in folder.iterdir() if re.fullmatch(r"\d{5,}\.png", p.name)}


def _reward(round_: Round) -> str | None:
    for kind in ("images", "target_images"):
        if round_.scores_file(kind).exists():
            return read_json(round_.scores_file(kind)).get("reward")
    return None


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def read_mask(
    path: Path, src: str, steps: int | None, items: int, fused: Set[int] | None
) -> dict[str, Any] | None:
    """What the page needs of a mask sheet; None if its shape is unexpected.

    Without settings, tiles are assumed to be square, and steps that are not all black to be fused.
    mean: over the fused steps, one hexadecimal digit per cell. coverage: its mean, exactly.
    """
    sheet = np.asarray(read_picture(path).convert("L"))
    height, width = sheet.shape
    gh = height // (items + 1)
    steps = steps or (width // gh if gh else 0)
    if not steps or height % (items + 1) or width % steps:
        return None
    gw = width // steps
    on = sheet[:gh].reshape(gh, steps, gw).transpose(1, 0, 2) > 127  # (T, gh, gw)
    if fused is None:
        fused = {steps - i for i in range(steps) if on[i].any()}
    chosen = on[[steps - t for t in sorted(fused)]] if fused else np.zeros((1, gh, gw))
    mean = chosen.mean(0)
    return {
        "src": src,
        "steps": steps,
        "fused": sorted(fused, reverse=True),
        "gw": gw,
        "gh": gh,
        "mean": "".join(f"{round(v * 15):x}" for v in mean.flat),
        "coverage": float(mean.mean()),
    }


def summary(images: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and means of a round or of one of its prompts; None if not known yet."""
    decided = [p["adopted"] for p in pairs if p["adopted"] is not None]
    means = {side: _mean(p[side]["score"] for p in pairs) for side in SIDES}
    both = [p for p in pairs if None not in (p["target"]["score"], p["base"]["score"])]
    return {
        "images": len(images),
        "pairs": len(pairs),
        "targets": sum(p["target"]["src"] is not None for p in pairs),
        "mean": {"images": _mean(i["score"] for i in images), **means},
        "gain": _mean(p["target"]["score"] - p["base"]["score"] for p in both),
        "decided": len(decided),
        "adopted": sum(decided),
        "rate": sum(decided) / len(decided) if decided else None,
        "coverage": _mean(p["mask"]["coverage"] for p in pairs if p["mask"]),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
