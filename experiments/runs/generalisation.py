"""Unseen prompts before and after training (the paper's Table 1), for runs of `alignment`.

    python -m experiments.runs.generalisation --names dpo_naive_t1_s42,dpo_dfusion_t1_s42

Every model samples the same prompts of the template's test list from the same noise, that of the
first run's seed; differences to the base model are paired by noise, with 95 % intervals over
prompts. They hold for one seed of training. Run again, it only makes what is missing. Figures are
in results/<preset>/<runs>/, a file for each template and seed; generalisation.png shows all.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfusion.errors import UserError, ends_in_one_line
from dfusion.method.prompts import Prompt
from dfusion.method.sampling import sample
from dfusion.models.devices import pick_device, pick_dtype, quiet_libraries
from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.models.numerics import set_numerics
from dfusion.models.plan import plan_of, sampler_of
from dfusion.progress import Progress
from dfusion.rewards.registry import load_reward
from dfusion.rounds.session import policy_of
from dfusion.settings.plain_text import names_of
from dfusion.settings.plain_values import flat
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_json
from dfusion.training.checkpoints import Checkpoints
from experiments.measures.intervals import Gain, over_groups
from experiments.measures.measure import Meters, diversity
from experiments.pairs.dots import draw
from experiments.runs.alignment import (
    RESULTS,
    SIZES,
    prompts_file,
    rounds_trained,
    run_of,
    runs_of,
)
from experiments.runs.recipes import RECIPES

NUMBER = 2_000_000  # stands in for a round's number in the noise: no training round has it
BATCH = 16
IMAGES = 16  # of each prompt
MEASURED = {"score": "scores", "right": "right", "second": "second"}
TESTBED_IMAGES = 192  # of all prompts of a template together, on the testbed


def settings_of(name: str, preset: str, template: int, runs: str) -> Settings:
    """The settings of a run, with the test list's prompts and the run's last LoRA."""
    settings, folder = run_of(name, preset, template, runs), runs_of(preset, runs) / name
    own = str(Checkpoints(folder / "checkpoints").path(rounds_trained(folder) - 1))
    lora = ",".join([*names_of(settings.pretrained.lora), own])
    return replace(
        settings,
        pretrained=replace(settings.pretrained, lora=lora),
        prompt_file=str(prompts_file(preset, template, "test")),
        item_idx_file=str(prompts_file(preset, template, "item")),
        mask_thr_file=str(prompts_file(preset, template, "mask")),
    )


def model_of(settings: Settings) -> DiffusionModel:
    device = pick_device(settings.device, settings.dev_id)
    set_numerics(settings)
    dtype = pick_dtype(settings.mixed_precision, device)
    return load_model(settings.pretrained, device, dtype, settings.size)


def images_of(preset: str, prompts: int) -> int:
    """Images of each prompt where no flag says."""
    return TESTBED_IMAGES // prompts if preset.startswith("testbed") else IMAGES


def sampled(settings: Settings, model: DiffusionModel, prompts: Sequence[Prompt]) -> np.ndarray:
    """One image for each prompt, uint8 (N, H, W, 3), from noise that only the seed decides."""
    sampler = sampler_of(settings, model)
    policy = policy_of(settings, model, sampler, NUMBER)
    _, layers = plan_of(settings, model.layers)
    progress, pictures = Progress("sampling", len(prompts)), []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        made = sample(policy, range(start, start + len(part)), part, layers)
        pictures.append(model.decode(torch.stack([t.latents[-1] for t in made])).numpy())
        progress.advance(len(part))
    return np.concatenate(pictures)


def measured(
    settings: Settings, model: DiffusionModel, prompts: Sequence[Prompt], meters: Meters
) -> dict[str, Any]:
    """Score and judgement of every image, and how much images of a prompt differ."""
    images, texts = sampled(settings, model, prompts), [p.text for p in prompts]
    reward = load_reward(settings.eval, model.device)
    scores = reward([Image.fromarray(image) for image in images], texts)
    return {
        "weights": model.fingerprint(),
        "scores": [round(float(s), 4) for s in scores],
        **meters.read(images, texts),
        "diversity": diversity(images, texts),
    }


def line(name: str, figures: dict[str, Any], other: dict[str, Any], each: int) -> str:
    """One model as text: its means, and how much more they are than another's."""
    texts = []
    for key, found in gains(figures, other, each).items():
        if found:
            mean = np.mean(figures[MEASURED[key]])
            texts.append(f"{key} {mean:.3f} ({found[0]:+.3f} ± {found[1]:.3f})")
    return f"{name:44} {'  '.join(texts)}  diversity {figures['diversity']}"


def gains(figures: dict[str, Any], base: dict[str, Any], each: int) -> dict[str, Gain]:
    """What a model gained on another, images paired by noise; each: images of a prompt."""
    return {
        key: over_groups(figures[name], base[name], each) if base[name] else None
        for key, name in MEASURED.items()
    }


def made_with(settings: Settings) -> dict[str, Any]:
    """What pictures and scores depend on, besides weights, prompts and noise."""
    names = ("sample.num_steps", "sample.eta", "sample.cfg", "sample.guidance_scale")
    flags = flat(settings.to_dict())
    return {k: flags[k] for k in (*names, "eval.reward", "eval.model", "eval.pretrained")}


def redraw(folder: Path) -> Path:
    """The figure of all templates in a folder of results."""
    rows: dict[str, dict[str, Gain]] = {}
    for path in sorted(folder.glob("generalisation_t[123]_s*.json")):
        saved = json.loads(path.read_text())
        models = saved["models"]
        for name, figures in models.items():
            if name != "base":
                kind = re.fullmatch(rf"(.*)_t{saved['template']}_s{saved['seed']}", name)
                label = RECIPES[kind[1]].label if kind and kind[1] in RECIPES else name
                about = f"template {saved['template']}, seed {saved['seed']}"
                row = f"{about}: {label}, {figures['rounds']} rounds"
                rows[row] = gains(figures, models["base"], saved["images per prompt"])
    out = folder / "generalisation.png"
    draw(rows, out)
    return out


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", required=True, help="runs of experiments.runs.alignment")
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument(
        "--images", type=int, help=f"of each prompt; testbed: 6 or 12, else {IMAGES}"
    )
    parser.add_argument("--preset", default="testbed", choices=SIZES)
    parser.add_argument("--runs", default="alignment", help="the runs' folder in results/<preset>")
    parser.add_argument("--second", help="a scorer that training never saw: module:function")
    args = parser.parse_args()
    quiet_libraries()
    meters = Meters.of(args.preset, args.second)
    torch.manual_seed(0)
    names = names_of(args.names)
    every = {name: settings_of(name, args.preset, args.template, args.runs) for name in names}
    first = next(iter(every.values()))
    every = {name: replace(settings, seed=first.seed) for name, settings in every.items()}
    untrained = run_of(names[0], args.preset, args.template, args.runs).pretrained
    every = {"base": replace(first, pretrained=untrained), **every}
    if any(made_with(settings) != made_with(first) for settings in every.values()):
        raise UserError(
            f"--names {args.names}: runs of other sampling or scorers; name those alike"
        )
    listed = load_prompts(first)
    each = args.images or images_of(args.preset, len(listed))
    prompts = [p for p in listed for _ in range(each)]
    about = {
        "template": args.template,
        "images per prompt": each,
        "seed": first.seed,
        "made with": made_with(first),
        "second scorer": args.second
        or ("the testbed's" if args.preset.startswith("testbed") else None),
    }
    results = RESULTS / args.preset / args.runs
    out = results / f"generalisation_t{args.template}_s{first.seed}.json"
    saved = json.loads(out.read_text()) if out.exists() else {**about, "models": {}}
    if any(saved.get(key) != value for key, value in about.items()):
        raise UserError(f"{out}: made with other images or scorer; move it away first")
    for name, settings in every.items():
        model = model_of(settings)
        known, weights = saved["models"].get(name, {}).get("weights"), model.fingerprint()
        if name == "base" and known not in (None, weights):
            raise UserError(f"{out}: made with another base model; move it away first")
        if known != weights:
            folder = runs_of(args.preset, args.runs) / name
            rounds = 0 if name == "base" else rounds_trained(folder)
            figures = measured(settings, model, prompts, meters)
            saved["models"][name] = {"rounds": rounds, **figures}
            write_json(out, saved)
        print(line(name, saved["models"][name], saved["models"]["base"], each), flush=True)
    for name in names[1:]:
        one, two = saved["models"][name], saved["models"][names[0]]
        print(line(f"{name} against {names[0]}", one, two, each))
    print(f"Figures are in {out}, drawn in {redraw(results).name}")


if __name__ == "__main__":
    main()
