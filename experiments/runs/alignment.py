"""One alignment run: train, then measure with the same noise before and after.

    python -m experiments.runs.alignment --recipe dpo_naive --template 1 --seed 42
    python -m experiments.runs.alignment --preset paper --recipe dpo_dfusion --template 1 --seed 42

The scorer's mean and, on the testbed, the judge's accuracy (the truth, which training never sees)
are taken of each round's samples and of comparisons made with the same noise; and so are a second
scorer that training never sees, and how much images of a prompt differ. Run again, it goes on where
it was. What comes before training is taken over from a run beside it that begins alike
(--config.samples_from). Results are in results/<preset>/<runs>/, one file a run.
"""

import argparse
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfusion.errors import UserError, ends_in_one_line
from dfusion.rounds.session import changes, resolved
from dfusion.settings.plain_values import flat
from dfusion.settings.plain_values import settings_of as settings_from
from dfusion.settings.presets import PRESETS
from dfusion.settings.schema import FREE, Settings
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_json, write_bytes, write_json
from dfusion.training.checkpoints import Checkpoints
from dfusion.training.trainer import train_rounds
from experiments.measures.measure import Meters, diversity
from experiments.runs.recipes import RECIPES
from experiments.runs.shared_start import source_of

RESULTS = Path(__file__).parent.parent / "results"
DATA = Path("data")
SIZES: dict[str, dict[str, Any]] = {
    "testbed": {
        "prompts": 18,
        "images": 8,
        "rounds": 18,
        "compare": 16,
        "compare_every": 3,
        "precision": "bf16",
    },
    "paper": {"rounds": 40, "compare": 4, "compare_every": 5},
}
SIZES["testbed_sd3"] = SIZES["testbed"]


def runs_of(preset: str, runs: str = "alignment") -> Path:
    """The folder of a preset's runs."""
    return DATA / f"{runs}_{preset}"


def folder_of(settings: Settings) -> Path:
    """The folder of a run."""
    return Path(settings.save_path) / settings.exp_name


def name_of(args: argparse.Namespace) -> str:
    """What tells a run from others where no --name does."""
    return args.name or f"{args.recipe}_t{args.template}_s{args.seed}"


def prompts_file(preset: str, template: int, kind: str) -> Path:
    """kind: train, test or held-out prompts, item words or mask thresholds of a template."""
    family = "testbed" if preset.startswith("testbed") else "template"
    own = "sd3_mask" if (preset, kind) == ("testbed_sd3", "mask") else kind
    return Path("config/prompt") / f"{family}{template}_{own}.json"


def settings_of(args: argparse.Namespace) -> Settings:
    """The preset with this run's recipe, on a template's training prompts."""
    settings, data = PRESETS[args.preset](), runs_of(args.preset, args.runs)
    train, items, thresholds = (
        prompts_file(args.preset, args.template, kind)
        for kind in ("held" if args.held_out else "train", "item", "mask")
    )
    settings.prompt_file = str(_prompts(args, train, data))
    settings.item_idx_file = str(items)
    settings.mask_thr_file = str(thresholds)
    settings.pretrained.model = args.model or settings.pretrained.model
    settings.save_path, settings.exp_name, settings.seed = str(data), name_of(args), args.seed
    settings.eval.in_process, settings.device = True, args.device
    if args.images:
        settings.sample.batch_size, settings.sample.num_batches_per_epoch = args.images, 1
    if args.precision:
        settings.mixed_precision = args.precision
    given = {
        "num_epochs": args.rounds,
        "compare_images": args.compare,
        "compare_every": args.compare_every,
    }
    chosen_flags = {k: v for k, v in given.items() if v is not None}
    settings.train = replace(settings.train, **chosen_flags)
    for change in [*RECIPES[args.recipe].settings(args.preset), *args.set]:
        settings = with_setting(settings, change)
    return settings


def with_setting(settings: Settings, change: str) -> Settings:
    """With one setting changed, "train.beta=1.0". Raises UserError for what is no setting."""
    flag, _, text = change.partition("=")
    values = settings.to_dict()
    known = flat(values)
    if flag not in known:
        raise UserError(f"--set {change}: there is no setting '{flag}'")
    value: Any = text
    if not isinstance(known[flag], str):
        with suppress(ValueError):
            value = json.loads(text.lower())
    group, _, name = flag.rpartition(".")
    (values[group] if group else values)[name] = value
    return settings_from(values, f"--set {change}")


def _prompts(args: argparse.Namespace, listed: Path, data: Path) -> Path:
    """The list, or --prompts of it after the first --skip, as a file of its own."""
    if not args.prompts:
        return listed
    texts = json.loads(listed.read_text())
    chosen = texts[args.skip : args.skip + args.prompts]
    start = f"_from_{args.skip}" if args.skip else ""
    path = data / f"{listed.stem}{start}_{args.prompts}.json"
    write_bytes(path, json.dumps(chosen).encode())
    return path


def measured(round_: Round, meters: Meters, each: bool = False) -> dict[str, Any]:
    """Means over a round's samples; each: of every image too, and how much they differ."""
    texts, scores = round_.texts_to_score("images"), round_.scores("images")
    images = np.stack([np.asarray(Image.open(round_.image("images", i))) for i in scores])
    listed = [texts[i] for i in scores]
    found = meters.read(images, listed)
    means: dict[str, Any] = {
        "images": len(scores),
        "scorer": float(np.mean(list(scores.values()))),
        "judge": float(np.mean(found["right"])) if found["right"] else None,
        "second": float(np.mean(found["second"])) if found["second"] else None,
    }
    if not each:
        return means
    return {
        **means,
        "diversity": diversity(images, listed),
        "scores": [*scores.values()],
        "right": found["right"],
        "second_scores": found["second"],
    }


def measure(experiment: Experiment, meters: Meters) -> dict[str, Any]:
    """Figures of every round and comparison on disk."""
    path = experiment.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rounds = {row["round"]: row for row in rows if row["kind"] == "round"}
    kept = ("adopted", "mask_coverage", "noise_norm", "seconds", "peak_memory_gib")
    return {
        "rounds": [
            {"round": k, **measured(r, meters), **{n: rounds[k].get(n) for n in kept}}
            for k, r in experiment.rounds().items()
            if k in rounds
        ],
        "same_noise": [
            {"rounds": k, **measured(r, meters, each=True)}
            for k, r in experiment.comparisons().items()
        ],
        "updates": [row for row in rows if row["kind"] == "update"],
    }


def result_of(args: argparse.Namespace) -> Path:
    """Where a run's figures are once it is done."""
    return RESULTS / args.preset / args.runs / f"{name_of(args)}.json"


def figures_of(settings: Settings, result: Path) -> dict[str, Any] | None:
    """The figures of a run with these very settings, of any number of rounds.

    Settings that the run did not know yet had their defaults.
    """
    if not result.exists():
        return None
    figures = json.loads(result.read_text())
    made = {**flat(Settings().to_dict()), **flat(figures["settings"])}
    same = all(made[k] == v for k, v in flat(settings.to_dict()).items() if k not in FREE)
    return figures if same else None


def check_same(settings: Settings) -> None:
    """Refuse a run that was begun with other settings. Raises UserError."""
    folder = folder_of(settings)
    if changed := changes(resolved(settings), Experiment(folder)):
        raise UserError(
            f"{folder}: begun with other settings: {', '.join(changed)}; give another --name, or "
            "move that folder away"
        )


def rounds_trained(folder: Path) -> int:
    """How many rounds the run in this folder was trained for."""
    last = Checkpoints(folder / "checkpoints").latest()
    return 0 if last is None else last + 1


def finished(settings: Settings, result: Path, kept: bool = True) -> bool:
    """Whether there are figures of this very run and, if kept, the run itself."""
    figures = figures_of(settings, result)
    if figures is None:
        return False
    rounds = figures["settings"]["train"]["num_epochs"]
    if kept:
        rounds = min(rounds, rounds_trained(folder_of(settings)))
    return rounds >= settings.train.num_epochs


def run_of(name: str, preset: str, template: int, runs: str = "alignment") -> Settings:
    """The settings of a run of this template. Raises UserError for any other name."""
    folder = runs_of(preset, runs) / name
    if not rounds_trained(folder):
        raise UserError(
            f"--names {name}: no checkpoint in {folder}; run experiments.runs.alignment"
        )
    settings = settings_from(read_json(folder / "config.json")["settings"], f"--names {name}")
    start = prompts_file(preset, template, "").stem  # of all names of this template's files
    if not Path(settings.item_idx_file).name.startswith(start):
        raise UserError(f"--names {name}: not a run of template {template}; give its --template")
    return settings


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The flags, with the sizes of their preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=SIZES)
    parser.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    parser.add_argument("--name", help="default: <recipe>_t<template>_s<seed>")
    parser.add_argument("--recipe", default="dpo_dfusion", choices=RECIPES, help="see recipes.py")
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument(
        "--held-out", action="store_true", help="prompts that no comparison uses (testbed)"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="testbed: bf16")
    parser.add_argument(
        "--prompts", type=int, help="the first of the list; testbed: 18, paper: all"
    )
    parser.add_argument("--skip", type=int, default=0, help="prompts of the list before those")
    parser.add_argument(
        "--runs", default="alignment", help="folder of the run's figures in results/<preset>"
    )
    parser.add_argument("--images", type=int, help="of each prompt and round; testbed: 8")
    parser.add_argument("--rounds", type=int, help="testbed: 18, paper: 40")
    parser.add_argument("--compare", type=int, help="images of each prompt; testbed: 16, paper: 4")
    parser.add_argument("--compare-every", type=int, help="rounds; testbed: 3, paper: 5")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="train.beta=1.0",
        help="any other setting; may be given several times",
    )
    parser.add_argument("--second", help="a scorer that training never sees: module:function")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    parser.set_defaults(**SIZES[parser.parse_args(given).preset])
    return parser.parse_args(given)


@ends_in_one_line()
def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    settings = settings_of(args)
    check_same(settings)
    settings.samples_from = source_of(settings)
    meters = Meters.of(args.preset, args.second)
    # A longer run is measured whole: its figures must not say that it is shorter.
    settings.train.num_epochs = max(settings.train.num_epochs, rounds_trained(folder_of(settings)))
    folder = train_rounds(settings)
    figures = measure(Experiment(folder), meters)
    out = result_of(args)
    write_json(out, {"settings": settings.to_dict(), **figures})
    for row in figures["same_noise"]:
        right = "" if row["judge"] is None else f", judge {row['judge']:.1%}"
        print(
            f"after {row['rounds']} rounds: scorer {row['scorer']:.3f}{right} "
            f"of {row['images']} images"
        )
    print(f"Figures are in {out}")


if __name__ == "__main__":
    main()
