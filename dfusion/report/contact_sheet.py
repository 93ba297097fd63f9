"""The contact sheet of an experiment: base, reference, mask and target of up to 24 pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dfusion.storage.files import read_picture

SIDES = ("base", "reference", "target")
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
    while start < len(band):  # one label for neighbours with the same prompt
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
    return (
        read_picture(folder / src).convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    )


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
