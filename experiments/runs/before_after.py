"""Images of the same noise before and after training (the paper's Fig. 4), for runs of `alignment`.

    python -m experiments.runs.before_after --names dpo_naive_t1_s42,dpo_dfusion_t1_s42 --template 1

The first images of the first prompts, not chosen ones. On the testbed a bar below each says what
the judge does: blue where it accepts, orange where it does not.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfusion.errors import UserError, ends_in_one_line
from dfusion.settings.plain_text import names_of
from dfusion.storage.experiment import Experiment, Round
from experiments.runs.alignment import RESULTS, run_of, runs_of
from testbed.models.judge import Judge

EACH = 4  # images of a prompt
PROMPTS = 6  # at most
GAP, BAR, LEFT, TOP = 4, 5, 130, 26
ACCEPTED, REJECTED = "#0072B2", "#E69F00"


def shown(round_: Round) -> dict[str, list[int]]:
    """The first EACH images of each of the first PROMPTS prompts."""
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(round_.texts_to_score("images")):
        groups.setdefault(text, []).append(index)
    return {text: groups[text][:EACH] for text in list(groups)[:PROMPTS]}


def row(round_: Round, judge: Judge | None) -> Image.Image:
    """The shown images of a comparison, side by side, with their bars."""
    chosen = [(text, i) for text, indices in shown(round_).items() for i in indices]
    images = [np.asarray(Image.open(round_.image("images", i)).convert("RGB")) for _, i in chosen]
    size = images[0].shape[0]
    strip = Image.new("RGB", (len(images) * (size + GAP), size + BAR + GAP), "white")
    draw = ImageDraw.Draw(strip)
    right = judge.satisfied(np.stack(images), [text for text, _ in chosen]) if judge else None
    for n, image in enumerate(images):
        x = n * (size + GAP)
        strip.paste(Image.fromarray(image), (x, 0))
        if right is not None:
            colour = ACCEPTED if right[n] else REJECTED
            draw.rectangle((x, size + 1, x + size - 1, size + BAR - 1), colour)
    return strip


def sheet(rows: dict[str, Image.Image], texts: list[str]) -> Image.Image:
    """Rows with their names on the left and the prompts above."""
    strips = list(rows.values())
    width, height = strips[0].size
    made = Image.new("RGB", (LEFT + width, TOP + height * len(strips)), "white")
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(13)
    for n, text in enumerate(texts):
        draw.text((LEFT + n * width // len(texts), 6), text, "black", font)
    for n, (name, strip) in enumerate(rows.items()):
        draw.multiline_text((4, TOP + n * height + 20), name, "black", font)
        made.paste(strip, (LEFT, TOP + n * height))
    return made


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", required=True, help="runs of experiments.runs.alignment")
    parser.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3), help="of the runs")
    parser.add_argument("--out", type=Path, help="default: results/<preset>/before_after_t<t>.png")
    args = parser.parse_args()
    runs = {}
    for name in names_of(args.names):
        run_of(name, args.preset, args.template)
        runs[name] = Experiment(runs_of(args.preset) / name).comparisons()
        if len(runs[name]) < 2:
            raise UserError(f"--names {name}: no comparisons; run experiments.runs.alignment")
    # As a text: prompts, seed, base model and how it was sampled.
    begun = [found[0].manifest() or {} for found in runs.values()]
    if len({json.dumps({**manifest, "mean": None}) for manifest in begun}) > 1:
        raise UserError(
            f"--names {args.names}: their images before training differ (prompts, seed or model); "
            "name runs that begin alike"
        )
    judge = Judge.load() if args.preset == "testbed" else None
    first = next(iter(runs.values()))[0]
    rows = {"before": row(first, judge)}
    for name, found in runs.items():
        last = max(found)
        rows[f"{name}\nafter {last} rounds".replace("_", " ")] = row(found[last], judge)
    out = args.out or RESULTS / args.preset / f"before_after_t{args.template}.png"
    sheet(rows, list(shown(first))).save(out)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
