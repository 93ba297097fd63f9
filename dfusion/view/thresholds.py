"""Choosing thresholds by eye: a prompt's item maps, the resulting masks, and the mask file."""

import base64
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfusion.errors import UserError
from dfusion.method.masks import fusion_mask, otsu
from dfusion.method.prompts import Prompt
from dfusion.report.rounds import word
from dfusion.settings.steps import parse_steps
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors, stamp, write_bytes
from dfusion.view.folders import Data, NotThereError, shown_path, why_not
from dfusion.view.pairs import prompt_of
from dfusion.view.runs import command_of

SHOWN = 16  # samples per prompt
BINS = 60  # of an item's histogram
_saving = threading.Lock()


@dataclass(frozen=True)
class Maps:
    """Item maps of a prompt's samples. values: (N, T, I, gh, gw) float32."""

    prompt: Prompt
    indices: tuple[int, ...]
    values: Tensor


def maps_of(round_: Round, text: str) -> Maps:
    """Maps of a prompt's first samples. Raises NotThereError if there are none yet."""
    prompt, indices = prompt_of(round_, text)
    there = [i for i in indices if round_.trajectory(i).is_file()][:SHOWN]
    if prompt is None or not there:
        raise NotThereError(
            f"{round_.folder.name}: no sample of '{text}' with maps{why_not(round_)}"
        )
    return _read(
        round_.folder, prompt, tuple(there), tuple(stamp(round_.trajectory(i)) for i in there)
    )


@lru_cache(maxsize=16)
def _read(
    folder: Path, prompt: Prompt, indices: tuple[int, ...], files: tuple[object, ...]
) -> Maps:
    """files: stamps, so that replaced files are read again."""
    round_ = Round(folder)
    values = [read_tensors(round_.trajectory(i))["maps"].float() for i in indices]
    return Maps(prompt, indices, torch.stack(values))


def item_view(data: Data, name: str, which: str, text: str) -> dict[str, Any]:
    """Items of a prompt with thresholds, ranges and histograms; maps of its samples as bytes.

    A map's bytes are base64 of uint8 (T, I, gh, gw), each item over its own range of all samples.
    """
    round_, settings = data.round(name, which), data.settings(name)
    maps, scores = maps_of(round_, text), round_.scores("images")
    saved = _saved(mask_file(data, name)).get(text)
    low = maps.values.amin((0, 1, 3, 4), keepdim=True)
    high = maps.values.amax((0, 1, 3, 4), keepdim=True)
    scaled = ((maps.values - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    steps = maps.values.shape[1]
    return {
        "prompt": text,
        "grid": list(maps.values.shape[-2:]),
        "steps": steps,
        "fused": sorted(parse_steps(settings.fusion.steps, settings.sample.num_steps)),
        "merge": settings.mask.merge,
        "file": shown_path(mask_file(data, name)),
        "given": settings.mask_thr_file,
        "command": command_of(
            data,
            name,
            exp_name=f"{settings.exp_name}_thresholds",
            mask_thr_file=shown_path(mask_file(data, name)),
        ),
        "saved": saved,
        "items": [
            {
                "word": word(text, item.name),
                "threshold": item.threshold,
                **_histogram(maps.values[:, :, i].numpy()),
            }
            for i, item in enumerate(maps.prompt.items)
        ],
        "samples": [
            {"i": i, "score": scores.get(i), "maps": _text(scaled[n])}
            for n, i in enumerate(maps.indices)
        ],
    }


def _histogram(values: np.ndarray) -> dict[str, Any]:
    """low, high: of the values, both above 0; counts of BINS bins of equal ratio between them.

    Values below low are not counted: most of a map is close to 0.
    """
    high = max(float(values.max()), 1e-9)
    positive = values[values > 0]
    low = max(float(positive.min()) if len(positive) else high / 10, high * 1e-6)
    low = min(low, high / 1.01)
    edges = np.geomspace(low, high, BINS + 1)
    counts, _ = np.histogram(values[values >= low], edges)
    return {"low": low, "high": high, "counts": counts.tolist()}


def masks(
    data: Data, name: str, which: str, text: str, thresholds: list[float | None], t: int | None
) -> dict[str, Any]:
    """Masks of a prompt's samples under these thresholds (None: Otsu's), by dfusion.method.masks.

    t: a step, or None for the mean over the fused steps. Bytes are base64 of uint8 (gh, gw).
    otsu: per item, the mean of Otsu's thresholds at those steps.
    """
    round_, settings = data.round(name, which), data.settings(name)
    maps = maps_of(round_, text)
    steps, items = maps.values.shape[1], maps.values.shape[2]
    if len(thresholds) != items:
        raise UserError(f"{len(thresholds)} thresholds for {items} items; give one for each")
    if t is not None and not 1 <= t <= steps:
        raise UserError(f"step {t}: steps are {steps} … 1")
    chosen = [t] if t else sorted(parse_steps(settings.fusion.steps, steps)) or [steps // 2]
    values = maps.values[:, [steps - k for k in chosen]]
    share = fusion_mask(values, thresholds, settings.mask.merge).float().mean(1)  # (N, gh, gw)
    return {
        "masks": [_text((m * 255).round().to(torch.uint8)) for m in share],
        "coverage": [float(m.mean()) for m in share],
        "shares": _shares(values, thresholds),
        "otsu": otsu(values).mean((0, 1, 3, 4)).tolist(),
    }


def _shares(values: Tensor, thresholds: Sequence[float | None]) -> list[float]:
    """Per item, the share of the cells at or above its threshold. values: (N, T, I, gh, gw)."""
    each = enumerate(thresholds)
    return [float(fusion_mask(values[:, :, i : i + 1], [t], "or").float().mean()) for i, t in each]


def shares_of(data: Data, name: str, which: str, n: int) -> dict[str, Any]:
    """Per item of a pair, the share of the reference's cells that its threshold keeps."""
    round_, settings = data.round(name, which), data.settings(name)
    pairs = round_.pairs() or ()
    if n >= len(pairs):
        raise NotThereError(f"{name}: no pair {n} in {which}")
    path = round_.trajectory(pairs[n].reference)
    if not path.is_file():
        return {"shares": None}
    maps = read_tensors(path)["maps"].float()  # (T, I, gh, gw)
    fused = sorted(parse_steps(settings.fusion.steps, len(maps)))
    thresholds = round_.sample_prompts()[pairs[n].reference].thresholds
    values = maps[None, [len(maps) - t for t in fused]]
    return {"shares": _shares(values, thresholds) if fused else None}


def mask_file(data: Data, name: str) -> Path:
    """The file of an experiment's own thresholds, in its folder. What the run was given stays."""
    return data.experiment(name).folder / "thresholds.json"


def save(
    data: Data, name: str, which: str, text: str, thresholds: list[float | None]
) -> dict[str, Any]:
    """Set a prompt's thresholds in the experiment's own mask file; all other prompts keep theirs.

    A new file is a copy of the one that the run was given, or lists the round's prompts with the
    thresholds they were made with. Raises UserError for a wrong number of thresholds, or a file
    that is not a mask file.
    """
    round_ = data.round(name, which)
    prompt, _ = prompt_of(round_, text)
    if prompt is None:
        raise NotThereError(f"{name}: no prompt '{text}' in {which}")
    if len(thresholds) != len(prompt.items):
        raise UserError(f"{len(thresholds)} thresholds for the {len(prompt.items)} items")
    path = data.inside(mask_file(data, name))
    with _saving:
        rows = _saved(path) if path.exists() else _given(data, name, round_)
        rows[text] = thresholds
        write_bytes(path, _as_text(rows).encode())
    return {"file": shown_path(path)}


def _given(data: Data, name: str, round_: Round) -> dict[str, list[float | None]]:
    """The thresholds that a run was given."""
    file = data.settings(name).mask_thr_file
    given = _saved(Path(file)) if file else {}
    prompts = {p.text: list(p.thresholds) for p in round_.sample_prompts()}
    return given | {text: row for text, row in prompts.items() if text not in given}


def _saved(path: Path) -> dict[str, list[float | None]]:
    """Contents of a mask file; empty if there is none. Raises UserError for any other file."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); correct or remove it") from error
    if not isinstance(rows, dict) or not all(isinstance(row, list) for row in rows.values()):
        raise UserError(f"{path}: not a mask file {{prompt: [thresholds]}}; nothing was written")
    return rows


def _as_text(rows: dict[str, list[float | None]]) -> str:
    """One line per prompt."""
    lines = [f" {json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in rows.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _text(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
