"""One pair to look at closely: a base and a reference of any prompt, by seed or by score."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from dfusion.errors import UserError, ends_in_one_line
from dfusion.method.fusion import FusionPlan, Source, fuse
from dfusion.method.sampling import Policy, sample
from dfusion.models.devices import pick_device, pick_dtype, quiet_libraries
from dfusion.models.loading import load_model
from dfusion.models.numerics import set_numerics
from dfusion.models.plan import plan_of, sampler_of
from dfusion.rewards.contract import Reward
from dfusion.rewards.registry import load_reward
from dfusion.rounds.session import policy_of
from dfusion.settings.check import check
from dfusion.settings.presets import PRESETS
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_json
from experiments.measures.similarity import ssim

RESULTS = Path(__file__).parent.parent / "results"
BATCH = 16


@dataclass(frozen=True)
class ChosenPair:
    """A pair, how it was made and what fusing it gives. indices: base's and reference's."""

    settings: Settings
    policy: Policy
    plan: FusionPlan
    reward: Reward
    source: Source
    indices: tuple[int, int]

    @cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Base and reference, uint8 (H, W, 3)."""
        states = [t.latents[-1] for t in (self.source.base, self.source.reference)]
        base, reference = self.policy.model.decode(torch.stack(states)).numpy()
        return base, reference

    def targets(self, plans: Sequence[FusionPlan]) -> list[np.ndarray]:
        """The target of every plan, uint8 (H, W, 3)."""
        states = [fuse(self.policy, plan, [self.source])[0].latents[-1] for plan in plans]
        return list(self.policy.model.decode(torch.stack(states)).numpy())

    def measure(self, image: np.ndarray) -> dict[str, float]:
        """Score of an image, and how like the base and the reference it is (SSIM)."""
        base, reference = self.images
        (score,) = self.reward([Image.fromarray(image)], [self.source.prompt.text])
        found = {
            "score": score,
            "like_base": ssim(image, base),
            "like_reference": ssim(image, reference),
        }
        return {key: round(float(value), 4) for key, value in found.items()}

    def about(self) -> dict[str, Any]:
        """What was looked at."""
        prompt, (base, reference) = self.source.prompt, self.indices
        return {
            "prompt": prompt.text,
            "items": {item.name: item.threshold for item in prompt.items},
            "base": base,
            "reference": reference,
            "preset": {
                "layers": sorted(self.plan.layers),
                "steps": self.settings.fusion.steps,
                "merge": self.plan.merge,
            },
            "weights": self.policy.model.fingerprint(),
        }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags of every experiment on one pair."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--preset", default="testbed", choices=sorted(PRESETS))
    made.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    made.add_argument("--prompt", help="default: a star wearing a hat, or a cat playing chess")
    made.add_argument("--items", help="comma list of words, e.g. cat,chess")
    made.add_argument("--threshold", help="of all items: a number or auto; default: the preset's")
    made.add_argument("--seed", type=int, default=42)
    made.add_argument("--base", type=int, help="number of the base; default: lowest score")
    made.add_argument("--reference", type=int, help="default: highest score")
    made.add_argument("--images", type=int, default=16, help="images to choose from by score")
    made.add_argument("--device", default="auto")
    made.add_argument("--out", type=Path, help="default: experiments/results/<preset>")
    return made


def prompt_of(args: argparse.Namespace) -> tuple[str, str]:
    """Text and items that were asked for, or the preset's. Raises UserError for one alone."""
    if bool(args.prompt) != bool(args.items):
        raise UserError("--prompt and --items: give both, e.g. --items cat,chess, or neither")
    if args.preset.startswith("testbed") and not args.prompt:
        return "a star wearing a hat", "star,hat"
    settings = PRESETS[args.preset]()
    return args.prompt or settings.prompt, args.items or settings.item_idx


def settings_of(args: argparse.Namespace) -> Settings:
    """The preset with this experiment's prompt; checked."""
    settings = PRESETS[args.preset]()
    settings.prompt_file = settings.item_idx_file = settings.mask_thr_file = ""
    settings.prompt, settings.item_idx = prompt_of(args)
    if args.preset == "testbed":
        settings.mask_thr = "2e-4"  # most thresholds of this model's files are near
    settings.mask_thr = args.threshold or settings.mask_thr
    settings.pretrained.model = args.model or settings.pretrained.model
    settings.seed, settings.device = args.seed, args.device
    check(settings)
    return settings


@ends_in_one_line()
def choose(args: argparse.Namespace) -> ChosenPair:
    """Sample the images in question and take the pair that was asked for."""
    settings = settings_of(args)
    (prompt,) = load_prompts(settings)
    device = pick_device(settings.device, settings.dev_id)
    quiet_libraries()
    set_numerics(settings)
    dtype = pick_dtype(settings.mixed_precision, device)
    model = load_model(settings.pretrained, device, dtype, settings.size)
    plan, mask_layers = plan_of(settings, model.layers)
    sampler = sampler_of(settings, model)
    policy = policy_of(settings, model, sampler, number=0)
    reward = load_reward(settings.eval, device)
    named = [i for i in (args.base, args.reference) if i is not None]
    if len(named) == 2 and named[0] == named[1]:
        raise UserError(f"--base {args.base} --reference {args.reference}: name two images")
    numbers = named if len(named) == 2 else sorted({*range(args.images), *named})
    batches = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
    made = [t for b in batches for t in sample(policy, b, [prompt] * len(b), mask_layers)]
    found = dict(zip(numbers, made, strict=True))
    pictures = model.decode(torch.stack([t.latents[-1] for t in made])).numpy()
    scores = reward([Image.fromarray(p) for p in pictures], [prompt.text] * len(numbers))
    order = [n for _, n in sorted(zip(scores, numbers, strict=True))]
    base = args.base if args.base is not None else next(n for n in order if n != args.reference)
    reference = args.reference
    if reference is None:
        reference = next(n for n in reversed(order) if n != base)
    source = Source(base, prompt, found[base], found[reference])
    return ChosenPair(settings, policy, plan, reward, source, (base, reference))


def show(axes: Axes, image: np.ndarray, title: str) -> None:
    """One picture with a title and without ticks."""
    axes.imshow(image)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def path_of(name: str, args: argparse.Namespace) -> Path:
    """Where the figure of an experiment goes: a name that says what it shows."""
    words = re.sub(r"[^a-z0-9]+", "_", prompt_of(args)[0].lower()).strip("_")
    return (args.out or RESULTS / args.preset) / f"{name}_{words}.png"


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on, as flags."""
    return {k: v for k, v in vars(args).items() if k not in ("device", "out")}


def drawn_before(name: str, args: argparse.Namespace) -> bool:
    """Whether this very figure is there."""
    path = path_of(name, args).with_suffix(".json")
    return path.exists() and json.loads(path.read_text()).get("asked") == asked(args)


def save(
    figure: plt.Figure, args: argparse.Namespace, name: str, pair: ChosenPair, rows: dict[str, Any]
) -> None:
    """Write the figure and, beside it, what was measured; print both."""
    path = path_of(name, args)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    write_json(path.with_suffix(".json"), {"asked": asked(args), **pair.about(), "rows": rows})
    for label, row in rows.items():
        print(f"{label:44} {'  '.join(f'{key} {value}' for key, value in row.items())}")
    print(f"Wrote {path} and {path.with_suffix('.json').name}.")
