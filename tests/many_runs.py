"""A folder of many invented runs, for tests and pictures of the app: made-up figures."""

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfusion.method.pairing import Pair
from dfusion.method.prompts import Item, Prompt
from dfusion.settings.presets import PRESETS
from dfusion.storage import last_error
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import link, write_json, write_png

ROUNDS, EACH = 4, 4
PROMPTS = (
    Prompt("a square driving a car", (Item("square"), Item("car"))),
    Prompt("a circle sailing a boat", (Item("circle"), Item("boat"))),
)
METHODS = ("dpo", "ddpo", "dpok")


@dataclass(frozen=True)
class Source:
    """The pictures of one round, to which those of all runs are linked.

    Sample 2p is the base of pair p, sample 2p + 1 its reference.
    """

    round: Round
    prompts: tuple[Prompt, ...]


def make(data: Path, count: int, like: Path | None = None, size: int = 64) -> None:
    """`count` runs: three seeds of each method, pairs and rate; every ninth one crashed.

    like: a finished round to take prompts and pictures from, enlarged to `size`; None for plain
    colours.
    """
    aside = data / ".pictures"
    source = _plain(aside, size) if like is None else _enlarged(aside, Round(like), size)
    for n in range(count):
        _run(data, n, source)
    shutil.rmtree(aside)


def _plain(folder: Path, size: int) -> Source:
    source = Source(Round(folder), PROMPTS)
    for i in range(len(PROMPTS) * EACH):
        write_png(source.round.image("images", i), np.full((size, size, 3), 20 + 25 * i, np.uint8))
    for p in range(len(PROMPTS) * EACH // 2):
        write_png(source.round.image("target_images", p), np.full((size, size, 3), 99, np.uint8))
        write_png(source.round.image("masks", p), np.full((24, 160), 255, np.uint8))
    return source


def _enlarged(folder: Path, found: Round, size: int) -> Source:
    """The first pairs of two prompts of a real round."""
    pairs = list(enumerate(found.pairs() or ()))
    texts = list(dict.fromkeys(pair.prompt for _, pair in pairs))[:2]
    prompts = {prompt.text: prompt for prompt in found.sample_prompts()}
    chosen: list[int] = []
    for text in texts:
        chosen += [n for n, pair in pairs if pair.prompt == text][: EACH // 2]
    source = Source(Round(folder), tuple(prompts[text] for text in texts))
    for p, n in enumerate(chosen):
        parts = (("base_images", "images", 2 * p), ("reference_images", "images", 2 * p + 1))
        for kind, to, i in (*parts, ("target_images", "target_images", p)):
            with Image.open(found.image(kind, n)) as image:
                large = image.resize((size, size), Image.Resampling.LANCZOS)
                write_png(source.round.image(to, i), np.asarray(large))
        link(found.image("masks", n), source.round.image("masks", p))
    return source


def _run(data: Path, n: int, source: Source) -> None:
    settings = PRESETS["testbed"]()
    variant = n // 3
    settings.seed = 42 + n % 3
    settings.train.method = METHODS[variant % 3]
    settings.train.pairs = ("dfusion", "naive")[variant // 3 % 2]
    settings.train.learning_rate = (5e-4, 1e-3, 3e-3)[variant // 6 % 3]
    settings.train.num_epochs = ROUNDS
    settings.exp_name = (
        f"{settings.train.method}_{settings.train.pairs}_{variant:02d}_s{settings.seed}"
    )
    settings.save_path = str(data)
    experiment = Experiment(data / settings.exp_name)
    write_json(experiment.config_file, {"settings": settings.to_dict()})
    crashed = n % 9 == 8
    rows: list[dict[str, Any]] = []
    for number in range(2 if crashed else ROUNDS):
        _round(experiment, number, n, source)
        rows += _metrics(number, n)
        write_json(experiment.folder / f"checkpoints/epoch{number}/state.json", {})
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (experiment.folder / "metrics.jsonl").write_text(text)
    if crashed:
        write_json(
            experiment.folder / last_error.FILE,
            {
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": "python3 run_train.py --config testbed",
                "message": "round 2, training: the loss is NaN; checkpoint epoch1 is intact",
            },
        )


def _figure(number: int, n: int) -> float:
    """A made-up score: it rises with the rounds, at a pace that depends on the run."""
    pace = (0.03, 0.02, 0.012)[n // 3 % 3]
    return 0.6 + pace * number + 0.01 * math.sin(3.7 * n + number)


def _metrics(number: int, n: int) -> list[dict[str, Any]]:
    score = _figure(number, n)
    updates = [
        {
            "kind": "update",
            "round": number,
            "loss": 0.69 - 0.01 * (8 * number + k) * score,
            "margin": 0.002 * (8 * number + k) * score,
            "preferred": min(0.95, 0.5 + 0.012 * (8 * number + k)),
            "grad_norm": 0.4 + 0.1 * math.sin(n + k),
        }
        for k in range(8)
    ]
    whole = {
        "kind": "round",
        "round": number,
        "noise_norm": 1 + 0.004 * number * score,
        "mask_coverage": 0.2 + 0.01 * math.sin(n),
        "watch_mean": score - 0.05 - 0.01 * number,
        "seconds": {"sampling": 40.0, "training": 60.0},
    }
    return [*updates, whole]


def _round(experiment: Experiment, number: int, n: int, source: Source) -> None:
    prompts, round_, count = source.prompts, experiment.round(number), len(source.prompts) * EACH
    noise = {"seed": 42 + n % 3, "round": number}
    round_.write_manifest(number, prompts, EACH, noise)
    pairs = tuple(
        Pair(prompts[p * 2 // EACH].text, base=2 * p, reference=2 * p + 1)
        for p in range(count // 2)
    )
    round_.write_pairs(pairs, {})
    for i in range(count):
        link(source.round.image("images", i), round_.image("images", i))
    for p, pair in enumerate(pairs):
        for kind in ("target_images", "masks"):
            link(source.round.image(kind, p), round_.image(kind, p))
        for kind, i in (("base_images", pair.base), ("reference_images", pair.reference)):
            link(source.round.image("images", i), round_.image(kind, p))
    score = _figure(number, n)
    round_.write_scores("images", "clip", {i: score + 0.1 * math.sin(i) for i in range(count)})
    targets = {p: score + 0.08 + 0.03 * math.sin(p + n) for p in range(len(pairs))}
    round_.write_scores("target_images", "clip", targets)
    rows = [
        {"base": score, "reference": score + 0.1, "target": t, "adopted": t > score + 0.08}
        for t in targets.values()
    ]
    round_.write_adoption(rows, {})
    for after in (number, number + 1):
        compared = experiment.comparison(after)
        if not compared.folder.exists():
            made_with = {**noise, "round": 1_000_000}
            compared.write_manifest(1_000_000, prompts, EACH // 2, made_with)
            for i in range(count // 2):
                link(source.round.image("images", i), compared.image("images", i))
            scores = {i: _figure(after, n) + 0.1 * math.sin(i) for i in range(count // 2)}
            compared.write_scores("images", "clip", scores)
