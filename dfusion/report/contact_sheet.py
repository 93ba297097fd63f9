"""The contact sheet of an experiment: base, reference, mask and target of up to 24 pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfusion.report.rounds import SIDES, has_begun, read_mask, round_view, settings_of
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_picture

ROWS = ("base", "reference", "mask", "target")
MOST, COLUMNS, PANEL, GAP, LEFT, TOP, LINE, LABEL = 24, 8, 160, 8, 112, 84, 27, 58
INK, DIM, PAPER, EMPTY, RULE = "#1d2330", "#6c7484", "#fbfaf7", "#ebe8e1", "#d5d1c6"
COLOURS = {"base": "#b4610c", "reference": "#2a62c9", "mask": "#4b5262", "target": "#16834a"}


def contact_sheet(folder: Path) -> Image.Image:
    """Up to 24 pairs of the latest round with targets (or with pairs), eight to a band."""
    experiment = Experiment(folder)
    settings = settings_of(experiment)
    views = {k: round_view(r, settings) for k, r in experiment.rounds().items() if has_begun(r)}
    paired = [k for k, view in views.items() if view["pairs"]]
    latest = next(
        (k for k in paired[::-1] if views[k]["summary"]["targets"]), max(paired, default=None)
    )
    pairs = spread(views[latest]["pairs"], MOST) if latest is not None else []
    bands = [pairs[i : i + COLUMNS] for i in range(0, len(pairs), COLUMNS)]
    band_height = LABEL + len(ROWS) * (PANEL + LINE) + 20
    columns = max([5, *map(len, bands)])
    size = (LEFT + columns * (PANEL + GAP) + 20, TOP + max(1, len(bands)) * band_height)
    sheet = Image.new("RGB", size if bands else (size[0], TOP + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((24, 20), _fit(folder.resolve().name, 24, size[0] - 48), INK, _font(24))
    caption = _caption(views, latest, len(pairs))
    draw.text((24, 54), _fit(caption, 14, size[0] - 48), DIM, _font(14))
    for b, band in enumerate(bands):
        assert latest is not None
        top = TOP + b * band_height
        _draw_band(sheet, experiment.round(latest), views[latest], band, top)
    return sheet


def spread(pairs: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` pairs, evenly over prompts and over each prompt's pairs; fused ones first."""
    fused = [p for p in pairs if p["target"]["there"]]
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


def _caption(views: dict[int, dict[str, Any]], latest: int | None, count: int) -> str:
    if latest is None:
        images = sum(len(view["samples"]) for view in views.values())
        return f"No pairs yet; {images} images sampled so far."
    view = views[latest]
    total = view["summary"]
    how = ", spread evenly over prompts" if count == MOST else ""
    parts = [f"Round {latest}", f"{count} of {total['pairs']} pairs{how}"]
    if total["decided"]:
        parts.append(f"{total['adopted']} of {total['decided']} targets adopted")
    means = [f"{s} {_score(total['mean'][s])}" for s in SIDES if total["mean"][s] is not None]
    if means:
        parts.append(f"mean {view['reward']} score: {', '.join(means)}")
    return "   ·   ".join(parts)


def _draw_band(
    sheet: Image.Image, round_: Round, view: dict[str, Any], band: list[Any], top: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    step = PANEL + GAP
    start = 0
    while start < len(band):  # one label for neighbours with the same prompt
        key = band[start]["prompt"]
        end = next((c for c in range(start, len(band)) if band[c]["prompt"] != key), len(band))
        x, wide = LEFT + start * step, (end - start) * step - GAP
        for i, line in enumerate(_wrap(prompt_of(view, band[start]), 14, wide)):
            draw.text((x, top + 4 + i * 18), line, INK, _font(14))
        draw.line((x, top + LABEL - 8, x + wide, top + LABEL - 8), RULE, 2)
        start = end
    for r, row in enumerate(ROWS):
        y = top + LABEL + r * (PANEL + LINE)
        draw.text((24, y + PANEL // 2), row, COLOURS[row], _font(16), anchor="lm")
        for c, pair in enumerate(band):
            picture = _panel(round_, view, pair, row, (PANEL, PANEL))
            _draw_panel(sheet, picture, pair, row, (LEFT + c * step, y))


def _draw_panel(
    sheet: Image.Image,
    picture: Image.Image | None,
    pair: dict[str, Any],
    row: str,
    at: tuple[int, int],
) -> None:
    """A picture with its frame and caption, its upper left corner at `at`."""
    draw = ImageDraw.Draw(sheet)
    (x, y), (wide, high) = at, picture.size if picture else (PANEL, PANEL)
    if picture is None:
        draw.rectangle((x, y, x + wide - 1, y + high - 1), EMPTY)
        draw.text((x + wide // 2, y + high // 2), "not yet", DIM, _font(13), anchor="mm")
    else:
        sheet.paste(picture, at)
    if row == "mask":
        text, colour = ("" if pair["mask"] is None else f"{pair['mask']:.0%} of cells"), DIM
    else:
        text, colour = _score(pair[row]["score"]), INK
    if row == "target" and pair["adopted"] is not None:
        text += "  adopted" if pair["adopted"] else "  not adopted"
        colour = COLOURS["target"] if pair["adopted"] else DIM
        if pair["adopted"]:
            draw.rectangle((x - 3, y - 3, x + wide + 2, y + high + 2), None, colour, 3)
    draw.text((x, y + high + 4), text, colour, _font(13))


def _panel(
    round_: Round, view: dict[str, Any], pair: dict[str, Any], row: str, size: tuple[int, int]
) -> Image.Image | None:
    """A picture of a pair; None if it does not exist yet."""
    if row == "mask":
        return _mask_image(round_, view, pair, size)
    path = round_.image("target_images", pair["n"])
    if row != "target":
        path = round_.image("images", pair[row]["i"])
    if not path.is_file():
        return None
    return read_picture(path).convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _mask_image(
    round_: Round, view: dict[str, Any], pair: dict[str, Any], size: tuple[int, int]
) -> Image.Image | None:
    if pair["mask"] is None:
        return None
    items = len(view["prompts"][pair["prompt"]]["items"]) if pair["prompt"] is not None else 0
    path = round_.image("masks", pair["n"])
    mean = read_mask(path, items, view["steps"], frozenset(view["fused"]))
    if mean is None:
        return None
    small = Image.fromarray((mean * 255).round().astype(np.uint8))
    return small.convert("RGB").resize(size, Image.Resampling.NEAREST)


def prompt_of(view: dict[str, Any], pair: dict[str, Any]) -> str:
    return "" if pair["prompt"] is None else str(view["prompts"][pair["prompt"]]["text"])


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _score(score: float | None) -> str:
    return "no score yet" if score is None else f"{score:.3f}"


def _fit(text: str, size: int, width: int) -> str:
    """The text, shortened with an ellipsis if it is wider than `width` pixels."""
    if len(text) <= width and _font(size).getlength(text) <= width:
        return text
    text = text[:width]  # no letter is narrower than a pixel
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


def pair_sheet(name: str, which: str, round_: Round, view: dict[str, Any], n: int) -> Image.Image:
    """One pair at full size: base, reference, mask and target in a row."""
    pair = view["pairs"][n]
    with Image.open(round_.image("images", pair["base"]["i"])) as image:
        size = image.size
    scale = max(1, PANEL // size[0])  # small pictures are enlarged by a whole factor
    size = (size[0] * scale, size[1] * scale)
    left, gap, top = 24, 16, 108
    width = 2 * left + len(ROWS) * size[0] + (len(ROWS) - 1) * gap
    sheet = Image.new("RGB", (width, top + size[1] + 48), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 18), _fit(prompt_of(view, pair), 24, width - 2 * left), INK, _font(24))
    images = f"base {pair['base']['i']}, reference {pair['reference']['i']}"
    about = f"{name}   ·   {which}   ·   pair {n}: {images}   ·   seed {view['noise']['seed']}"
    draw.text((left, 52), _fit(about, 14, width - 2 * left), DIM, _font(14))
    for c, row in enumerate(ROWS):
        x = left + c * (size[0] + gap)
        draw.text((x, top - 26), row, COLOURS[row], _font(16))
        _draw_panel(sheet, _panel(round_, view, pair, row, size), pair, row, (x, top))
    return sheet
