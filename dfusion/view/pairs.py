"""Experiments, their rounds, pairs and comparisons, as the app asks for them."""

import io
from typing import Any

from dfusion.method.prompts import Prompt
from dfusion.report import rounds
from dfusion.report.contact_sheet import pair_sheet
from dfusion.report.rounds import has_begun
from dfusion.storage.experiment import Experiment, Round
from dfusion.view.folders import Data, NotThereError, shown_path


def catalogue(data: Data) -> list[dict[str, Any]]:
    """Experiments with the rounds and comparisons that have begun, latest first."""
    rows = []
    for name in sorted(data.names(), key=lambda n: -_begun(data.experiment(n))):
        experiment = data.experiment(name)
        rows.append(
            {
                "name": name,
                "rounds": [k for k, r in experiment.rounds().items() if has_begun(r)],
                "comparisons": [k for k, r in experiment.comparisons().items() if has_begun(r)],
            }
        )
    return rows


def _begun(experiment: Experiment) -> float:
    """When the last round began, or the experiment itself if it has none."""
    rounds = [r.folder / "manifest.json" for r in experiment.rounds().values()]
    times = [path.stat().st_mtime for path in rounds if path.exists()]
    return max(times, default=experiment.config_file.stat().st_mtime)


def round_view(data: Data, name: str, which: str) -> dict[str, Any]:
    """Samples and pairs of a round with scores, and the folder that they are in."""
    round_, settings = data.round(name, which), data.settings(name)
    return rounds.round_view(round_, settings) | {"folder": shown_path(round_.folder)}


def comparisons(data: Data, chosen: list[tuple[str, str]]) -> dict[str, Any]:
    """Images of several comparisons (experiment, "compare/epoch3"), in rows of equal noise."""
    return rounds.comparisons([(name, which, data.round(name, which)) for name, which in chosen])


def sheet(data: Data, name: str, which: str, n: int) -> bytes:
    """A pair as one PNG. Raises NotThereError."""
    round_ = data.round(name, which)
    view = rounds.round_view(round_, data.settings(name))
    if n >= len(view["pairs"]):
        raise NotThereError(f"{name}: no pair {n} in {which}")
    data.image(name, which, "images", view["pairs"][n]["base"]["i"])
    buffer = io.BytesIO()
    pair_sheet(name, which, round_, view, n).save(buffer, "PNG")
    return buffer.getvalue()


def prompt_of(round_: Round, text: str) -> tuple[Prompt | None, list[int]]:
    """A prompt of a round by its text, and its samples' indices."""
    prompts = round_.sample_prompts()
    indices = [i for i, prompt in enumerate(prompts) if prompt.text == text]
    return (prompts[indices[0]] if indices else None), indices
