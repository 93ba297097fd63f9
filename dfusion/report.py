"""The page and the contact sheet of an experiment: data/<exp>/index.html and pairs.png.

Both are made from whatever is on disk, at any stage of a run; `python -m dfusion.report data/<exp>`
makes them again. The page holds its data inline and links to the round's PNGs by relative path.
"""

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfusion.errors import UserError
from dfusion.files import read_json, write_bytes
from dfusion.prompts import Prompt
from dfusion.steps import parse_steps
from dfusion.store import Experiment, Round

TEMPLATE = Path(__file__).with_name("report_page.html")
SCRIPT = Path(__file__).with_name("report_page.js")
KINDS = ("images", "base_images", "reference_images", "target_images", "masks")
SIDES = ("base", "reference", "target")
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


def inline_json(value: Any) -> str:
    """JSON that is safe inside a script element: no <, > or & whatever the prompts say."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# What is on disk, as plain data


def collect(folder: Path) -> dict[str, Any]:
    """Everything that the page shows. Paths are relative to `folder`, and only of files there."""
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
    }


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
    """An image and its score; src is None where the image is not there (yet)."""
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
    """What the page needs of a sprite sheet; None for a sheet of another shape than expected.

    Without settings, tiles are taken to be square, and steps that are not all black to be fused.
    mean: over the fused steps, one hexadecimal digit per cell. coverage: its mean, exactly.
    """
    sheet = np.asarray(Image.open(path).convert("L"))
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
    """Counts and means of a round or of one of its prompts; None where nothing is known yet."""
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


# The contact sheet

ROWS = ("base", "reference", "mask", "target")
MOST, COLUMNS, PANEL, GAP, LEFT, TOP, LINE, LABEL = 24, 8, 160, 8, 112, 84, 27, 58
INK, DIM, PAPER, EMPTY, RULE = "#1d2330", "#6c7484", "#fbfaf7", "#ebe8e1", "#d5d1c6"
COLOURS = {"base": "#b4610c", "reference": "#2a62c9", "mask": "#4b5262", "target": "#16834a"}


def contact_sheet(folder: Path, data: dict[str, Any]) -> Image.Image:
    """Up to 24 pairs of the latest round with targets (or with pairs), eight to a band."""
    rounds = [r for r in data["rounds"] if r["pairs"]]
    latest = next(
        (r for r in rounds[::-1] if r["summary"]["targets"]), rounds[-1] if rounds else None
    )
    pairs = spread(latest["pairs"], MOST) if latest else []
    bands = [pairs[i : i + COLUMNS] for i in range(0, len(pairs), COLUMNS)]
    band_height = LABEL + len(ROWS) * (PANEL + LINE) + 20
    columns = max([5, *map(len, bands)])
    size = (LEFT + columns * (PANEL + GAP) + 20, TOP + max(1, len(bands)) * band_height)
    sheet = Image.new("RGB", size if bands else (size[0], TOP + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((24, 20), _fit(data["name"], 24, size[0] - 48), INK, _font(24))
    draw.text((24, 54), _fit(_caption(data, latest, len(pairs)), 14, size[0] - 48), DIM, _font(14))
    for b, band in enumerate(bands):
        _draw_band(sheet, folder, data["prompts"], band, TOP + b * band_height)
    return sheet


def spread(pairs: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` pairs, evenly over prompts and over each prompt's pairs; fused ones first."""
    fused = [p for p in pairs if p["target"]["src"]]
    groups: dict[int, list[dict[str, Any]]] = {}
    for pair in fused or pairs:
        groups.setdefault(pair["prompt"], []).append(pair)
    members = list(groups.values())
    if len(members) > most:
        chosen = _even(len(members), most)
        return [members[g][i % len(members[g])] for i, g in enumerate(chosen)]
    counts = [0] * len(members)
    for turn in range(max(map(len, members), default=0)):
        for g, group in enumerate(members):
            if turn < len(group) and sum(counts) < most:
                counts[g] += 1
    return [m[i] for m, count in zip(members, counts, strict=True) for i in _even(len(m), count)]


def _even(n: int, k: int) -> list[int]:
    """k indices spread evenly over range(n)."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def _caption(data: dict[str, Any], round_: dict[str, Any] | None, count: int) -> str:
    if round_ is None:
        images = sum(len(r["images"]) for r in data["rounds"])
        return f"No pairs yet; {images} images sampled so far."
    total = round_["summary"]
    how = ", spread evenly over prompts" if count == MOST else ""
    parts = [f"Round {round_['number']}", f"{count} of {total['pairs']} pairs{how}"]
    if total["decided"]:
        parts.append(f"{total['adopted']} of {total['decided']} targets adopted")
    means = [f"{s} {_score(total['mean'][s])}" for s in SIDES if total["mean"][s] is not None]
    if means:
        parts.append(f"mean {round_['reward'] or ''} score: {', '.join(means)}")
    return "   ·   ".join(parts)


def _draw_band(
    sheet: Image.Image, folder: Path, prompts: list[dict[str, Any]], band: list[Any], top: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    step = PANEL + GAP
    start = 0
    while start < len(band):  # one label over neighbours that share a prompt
        key = band[start]["prompt"]
        end = next((c for c in range(start, len(band)) if band[c]["prompt"] != key), len(band))
        x, wide = LEFT + start * step, (end - start) * step - GAP
        for i, line in enumerate(_wrap(prompts[key]["text"], 14, wide)):
            draw.text((x, top + 4 + i * 18), line, INK, _font(14))
        draw.line((x, top + LABEL - 8, x + wide, top + LABEL - 8), RULE, 2)
        start = end
    for r, row in enumerate(ROWS):
        y = top + LABEL + r * (PANEL + LINE)
        draw.text((24, y + PANEL // 2), row, COLOURS[row], _font(16), anchor="lm")
        for c, pair in enumerate(band):
            _draw_panel(sheet, folder, pair, row, (LEFT + c * step, y))


def _draw_panel(
    sheet: Image.Image, folder: Path, pair: dict[str, Any], row: str, at: tuple[int, int]
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = at
    content = pair[row]
    picture = _mask_image(content) if row == "mask" else _picture(folder, content["src"])
    if picture is None:
        draw.rectangle((x, y, x + PANEL - 1, y + PANEL - 1), EMPTY)
        draw.text((x + PANEL // 2, y + PANEL // 2), "not yet", DIM, _font(13), anchor="mm")
    else:
        sheet.paste(picture, at)
    if row == "mask":
        text, colour = (f"{content['coverage']:.0%} of cells" if content else ""), DIM
    else:
        text, colour = _score(content["score"]), INK
    if row == "target" and pair["adopted"] is not None:
        text += "  adopted" if pair["adopted"] else "  fallback"
        colour = COLOURS["target"] if pair["adopted"] else DIM
        if pair["adopted"]:
            draw.rectangle((x - 3, y - 3, x + PANEL + 2, y + PANEL + 2), None, colour, 3)
    draw.text((x, y + PANEL + 4), text, colour, _font(13))


def _picture(folder: Path, src: str | None) -> Image.Image | None:
    if src is None:
        return None
    return Image.open(folder / src).convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)


def _mask_image(mask: dict[str, Any] | None) -> Image.Image | None:
    if mask is None:
        return None
    cells = np.array([int(digit, 16) * 17 for digit in mask["mean"]], np.uint8)
    small = Image.fromarray(cells.reshape(mask["gh"], mask["gw"]))
    return small.convert("RGB").resize((PANEL, PANEL), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _score(score: float | None) -> str:
    return "no score yet" if score is None else f"{score:.3f}"


def _fit(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrap(text: str, size: int, width: int) -> list[str]:
    """At most two lines of at most `width` pixels."""
    words = text.split()
    first = words[:1]
    while len(first) < len(words):
        if _font(size).getlength(" ".join(words[: len(first) + 1])) > width:
            break
        first = words[: len(first) + 1]
    rest = " ".join(words[len(first) :])
    return [_fit(line, size, width) for line in (" ".join(first), rest) if line]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m dfusion.report data/<exp>")
    try:
        print(*write(Path(sys.argv[1])), sep="\n")
    except UserError as error:
        sys.exit(str(error))
