"""Does training on one prompt leave its partners alone? A control of the testbed.

    python -m experiments.runs.one_prompt [--recipe dpo_dfusion] [--prompts 3] [--set NAME=VALUE]

A policy is trained on one prompt alone. Then the prompt and the two others of its cycle of mistakes
are sampled with the same noise before and after: the one that the model mistakes it for, and the
one that is mistaken for it. If the two words meant the same to the model, the partners would change
with the prompt. Results are in results/testbed/one_prompt.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dfusion.errors import ends_in_one_line
from dfusion.settings.prompt_files import load_prompts
from dfusion.settings.schema import Settings
from dfusion.storage.files import write_bytes, write_json
from dfusion.training.checkpoints import Checkpoints
from dfusion.training.trainer import train_rounds
from experiments.measures.intervals import gain
from experiments.runs.alignment import RESULTS, arguments, prompts_file, runs_of, settings_of
from experiments.runs.generalisation import model_of, sampled
from experiments.runs.recipes import RECIPES
from testbed.models.judge import Judge
from testbed.world.prompt_lists import cycle_of
from testbed.world.words import parse

OUT = RESULTS / "testbed" / "one_prompt.json"
EACH = 64  # images of each prompt, before and after


def cycle(text: str) -> dict[str, str]:
    """The three prompts of a cycle of mistakes, by what they are to `text`."""
    names = ("the prompt", "its mistake", "mistaken for it")
    return {name: c.prompt for name, c in zip(names, cycle_of(parse(text)), strict=True)}


def listing(texts: list[str], name: str) -> str:
    """A prompt file of these texts."""
    path = runs_of("testbed") / f"{name}.json"
    write_bytes(path, json.dumps(texts).encode())
    return str(path)


def judged(settings: Settings, texts: list[str], judge: Judge) -> dict[str, list[int]]:
    """Whether images of each prompt are right, 0 or 1."""
    prompts = [p for p in load_prompts(settings) for _ in range(EACH)]
    images = sampled(settings, model_of(settings), prompts)
    right = judge.satisfied(images, [p.text for p in prompts]).int().numpy()
    return dict(zip(texts, right.reshape(-1, EACH).tolist(), strict=True))


def measure(text: str, number: int, args: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Train on one prompt; how many images of its cycle are right before and after."""
    name = f"one_prompt_{args.name}_{number}"
    flags = [f"--recipe={args.recipe}", f"--rounds={args.rounds}", f"--images={args.images}"]
    flags += [f"--set={change}" for change in args.set]
    named = [f"--name={name}", f"--seed={args.seed}", f"--precision={args.precision}"]
    settings = settings_of(arguments([*flags, *named]))
    settings.prompt_file, settings.train.compare_images = listing([text], name), 0
    folder = train_rounds(settings)
    texts = [*cycle(text).values()]
    before = replace(settings, prompt_file=listing(texts, f"{name}_cycle"))
    lora = str(Checkpoints(folder / "checkpoints").path(args.rounds - 1))
    after = replace(before, pretrained=replace(before.pretrained, lora=lora))
    found = [judged(s, texts, judge) for s in (before, after)]
    return {
        kind: {
            "text": one,
            "before": np.mean(found[0][one]),
            "gain": gain(*(f[one] for f in found[::-1])),
        }
        for kind, one in cycle(text).items()
    }


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="dpo_dfusion", choices=RECIPES)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--name", help="of the figures, where --set is given; default: the recipe")
    parser.add_argument("--prompts", type=int, default=3, help="of template 1, one of each cycle")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48, help="in each round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    args = parser.parse_args()
    args.name = args.name or args.recipe
    listed = json.loads(Path(prompts_file("testbed", 1, "train")).read_text())
    judge = Judge.load()
    saved = json.loads(OUT.read_text()) if OUT.exists() else {}
    rows = saved[args.name] = []
    for number, text in enumerate(listed[::3][: args.prompts]):
        rows.append(measure(text, number, args, judge))
        for kind, row in rows[-1].items():
            more, wide = row["gain"]
            print(f"{row['text']} ({kind}): right {row['before']:.2f}, {more:+.2f} ± {wide:.2f}")
        write_json(OUT, saved)
    print(f"Figures are in {OUT}")


if __name__ == "__main__":
    main()
