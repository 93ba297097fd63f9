"""The paper's Fig. 9 with numbers: layers x steps x mask rule, per template, on the testbed.

    python -m experiments.pairs.fusion_grid            the grid, on test prompts
    python -m experiments.pairs.fusion_grid --final    the preset and its controls, on train prompts

Pairs are the pipeline's own (scorer, Algorithm 1). Each cell fuses the same pairs again; results
go to results/testbed/ after every cell, and cells that are there are not made again.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dfusion.errors import ends_in_one_line
from dfusion.method.fusion import FusionPlan
from dfusion.progress import Progress
from dfusion.settings.presets import PRESETS
from dfusion.settings.steps import parse_steps
from dfusion.storage.files import write_json
from experiments.pairs.fusion_pairs import (
    Candidates,
    Judge,
    candidates,
    measure,
    targets,
    testbed_settings,
)
from testbed.models.judge import Judge as TestbedJudge

RESULTS = Path(__file__).parent.parent / "results" / "testbed"
TEMPLATES = (1, 2, 3)
Figures = dict[str, dict[str, Any]]  # template -> what was measured


@dataclass(frozen=True)
class Cell:
    """One way of fusing. threshold: a number, "auto" (Otsu) or "file"; merge "none" is no mask.

    place: of the mask, "items", or for a control "random".
    """

    layers: str
    steps: str
    merge: str = "xor"
    threshold: str = "file"
    place: str = "items"

    @property
    def name(self) -> str:
        place = "" if self.place == "items" else f"|{self.place}"
        return f"{self.layers}|{self.steps}|{self.merge}|{self.threshold}{place}"

    def plan(self, pool: Candidates) -> FusionPlan:
        return FusionPlan(
            layers=pool.session.model.layers.parse(self.layers),
            steps=parse_steps(self.steps, len(pool.session.sampler)),
            masked=self.merge != "none",
            merge="or" if self.merge == "none" else self.merge,
            place=self.place,
        )


LAYERS = {
    "testbed": ("mid", "up", "mid,up", "all"),
    "testbed_sd3": ("early", "middle", "late", "middle,late", "all"),
}
STEPS = ("20-1", "20-11", "18-1", "12-1")
# Thresholds of the transformer's maps are shares of the attention to the prompt's own words.
LOWER = {"testbed": ("1e-4", "1e-5", "1e-6"), "testbed_sd3": ("1e-1", "3e-2", "1e-2")}


def grid_cells(preset: str) -> list[Cell]:
    """Layers and steps; then mask rules, and how far a mask may reach, on the two widest."""
    own = preset_cell(preset).threshold
    wide = LAYERS[preset][-2:]
    rules = dict.fromkeys((("xor", "auto"), ("or", own), ("none", "auto")))
    return [
        *(Cell(wide[0], "20-1", "or", threshold) for threshold in LOWER[preset]),
        *(Cell(layers, "20-1", "none", "auto") for layers in wide),
        *(Cell(layers, "18-1", *rule) for layers in wide for rule in rules),
        *(Cell(layers, steps, threshold=own) for layers in LAYERS[preset] for steps in STEPS),
    ]


TRIED, FINAL = (9, 8), (18, 8)  # prompts of a template, images of each


def load_judge() -> Judge:
    judge = TestbedJudge.load()
    return lambda images, prompts: np.asarray(judge.satisfied(images, list(prompts)))


def run(
    cells: list[Cell],
    split: str,
    prompts: int,
    images: int,
    data: Path,
    out: Path,
    preset: str = "testbed",
    model: str = "",
) -> dict[str, Figures]:
    """Measure cells on every template; returns {cell: {template: figures}}, saved as it grows.

    model: in place of the preset's.
    """
    about = {"split": split, "prompts per template": prompts, "images per prompt": images}
    saved: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {**about, "cells": {}}
    if any(saved[key] != value for key, value in about.items()):
        raise SystemExit(f"{out}: made with other pairs; move it away first")
    done = saved["cells"]
    missing = [c for c in dict.fromkeys(cells) if c.name not in done]
    if not missing:
        return done
    judge = load_judge()
    settings = (testbed_settings(t, split, data, prompts, images, preset, model) for t in TEMPLATES)
    pools = {t: candidates(own, judge) for t, own in zip(TEMPLATES, settings, strict=True)}
    fingerprint = pools[1].session.model.fingerprint()
    if saved.get("weights", fingerprint) != fingerprint:
        raise SystemExit(f"{out}: made with other weights; move it away first")
    progress = Progress("cells", len(missing), every_seconds=0)
    for cell in missing:
        threshold = {"auto": None, "file": "file"}.get(cell.threshold, cell.threshold)
        value = float(threshold) if threshold not in (None, "file") else threshold
        done[cell.name] = {}
        for t, pool in pools.items():
            fused, pictures = targets(pool, cell.plan(pool), value)
            done[cell.name][str(t)] = measure(pool, fused, pictures, judge)
        write_json(out, {**about, "weights": fingerprint, "cells": done})
        progress.advance()
        print(line(cell.name, done[cell.name]), flush=True)
    return done


def line(name: str, figures: Figures) -> str:
    """One cell as text: over templates, right base/reference/target, adopted, SSIM, coverage."""
    values = {k: [f[k] for f in figures.values() if f[k] is not None] for k in figures["1"]}
    mean = {k: np.mean(v) if v else np.nan for k, v in values.items()}
    follows, mended = (
        "/".join(f"{figures[str(t)][name] or 0:.2f}" for t in TEMPLATES)
        for name in ("follows", "mended")
    )
    return (
        f"{name:28} right {mean['base_right']:.2f} {mean['reference_right']:.2f} "
        f"{mean['target_right']:.2f}  adopted {mean['adopted']:.2f}  follows {follows}  "
        f"mended {mended}  "
        f"ssim {mean['ssim_target']:.2f} vs {mean['ssim_reference']:.2f}  "
        f"mask {mean['coverage']:.2f}"
    )


def final_cells(preset: str = "testbed") -> list[Cell]:
    """The preset's way of fusing; beside it a mask at a random place, OR, no mask, fewer steps."""
    own = preset_cell(preset)
    changes: tuple[dict[str, str], ...] = (
        {},
        {"place": "random"},
        {"merge": "or"},
        {"merge": "none", "threshold": "auto"},
        {"steps": "20-11"},
        {"steps": "20-16"},
    )
    return [replace(own, **change) for change in changes]


def preset_cell(preset: str = "testbed") -> Cell:
    """A testbed preset's own way of fusing."""
    settings = PRESETS[preset]()
    threshold = "file" if settings.mask_thr_file else settings.mask_thr
    return Cell(settings.fusion.layers, settings.fusion.steps, settings.mask.merge, threshold)


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--final", action="store_true", help="the preset, on train prompts")
    parser.add_argument("--prompts", type=int, help="per template; default 9, with --final 18")
    parser.add_argument("--images", type=int, help="per prompt, twice its pairs; default 8")
    parser.add_argument("--preset", default="testbed", choices=sorted(LAYERS))
    parser.add_argument("--model", default="", help="in place of the preset's")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="default: experiments/results/<preset>")
    args = parser.parse_args()
    folder = args.out or RESULTS.parent / args.preset
    if args.final:
        out, cells, split = folder / "fusion_final.json", final_cells(args.preset), "train"
    else:
        out, cells, split = folder / "fusion_grid.json", grid_cells(args.preset), "test"
    prompts, images = FINAL if args.final else TRIED
    prompts, images = args.prompts or prompts, args.images or images
    figures = run(cells, split, prompts, images, args.data, out, args.preset, args.model)
    for cell in cells:
        print(line(cell.name, figures[cell.name]))
    print(f"Results are in {out}; each cell: {list(asdict(cells[0]))}.")


if __name__ == "__main__":
    main()
