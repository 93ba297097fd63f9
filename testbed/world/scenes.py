"""Scenes: a prompt's claim turned into a picture, with everything else random.

`render` returns the picture and, for each item word of the prompt, the mask of its object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from testbed.world import drawing
from testbed.world.drawing import box, ellipse, fill, polygon, silhouette
from testbed.world.words import COLOURS, VEHICLES, WORN, Claim, parse

CAR_WINDOW = (200.0, 230.0, 240.0)
TYRE = (24.0, 24.0, 28.0)
WOOD = (96.0, 60.0, 34.0)
STEM = (30.0, 96.0, 40.0)


@dataclass(frozen=True)
class Layer:
    """One painted object: mask bool (256, 256), paint (256, 256, 3) or (3,), and its item index."""

    mask: np.ndarray
    paint: np.ndarray
    item: int


@dataclass(frozen=True)
class Picture:
    """image: uint8 (64, 64, 3); items: bool (n_items, 64, 64), visible part of each object."""

    image: np.ndarray
    items: np.ndarray


def _pick(rng: np.random.Generator, options: tuple[str, ...], without: str = "") -> str:
    choices = [o for o in options if o != without]
    return choices[rng.integers(len(choices))]


def _colour(name: str) -> np.ndarray:
    return np.asarray(drawing.RGB[name], dtype=np.float32)


def _shape(
    rng: np.random.Generator,
    name: str,
    colour: str,
    texture: str,
    cx: float,
    cy: float,
    radius: float,
    item: int,
) -> Layer:
    angle = rng.uniform(-0.16, 0.16)
    paint = fill(colour, texture, (rng.uniform(0, 20), rng.uniform(0, 20)))
    return Layer(silhouette(name, cx, cy, radius, angle), paint, item)


def _hat(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    crown = box(cx - 8.5, top - 14, cx + 8.5, top)
    band = box(cx - 8.5, top - 5, cx + 8.5, top - 2)
    brim = box(cx - 14.5, top - 2, cx + 14.5, top + 2)
    return [Layer(crown | brim, paint, 1), Layer(band, paint * 0.3, 1)]


def _crown(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    tips = [(-13, -15), (-6.5, -7), (0, -16), (6.5, -7), (13, -15)]
    outline = [(cx - 12, top + 2), *((cx + x, top + y) for x, y in tips), (cx + 12, top + 2)]
    layers = [Layer(polygon(outline), paint, 1)]
    for jewel in (cx - 7, cx, cx + 7):
        layers.append(Layer(ellipse(jewel, top - 1.5, 2, 2), paint * 0.3, 1))
    return layers


def _bow(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    y = top - 6
    loops = [[(cx, y), (cx + side, y - 9), (cx + side, y + 9)] for side in (-15, 15)]
    knot = ellipse(cx, y, 4, 4.5)
    return [*(Layer(polygon(loop), paint, 1) for loop in loops), Layer(knot, paint * 0.3, 1)]


def _car(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    body = box(cx - 25, top, cx + 25, top + 12)
    screen = polygon([(cx + 11, top - 11), (cx + 14, top - 11), (cx + 20, top), (cx + 11, top)])
    lamp = box(cx + 20, top + 2, cx + 25, top + 6)
    glass = np.asarray(CAR_WINDOW, np.float32)
    layers = [Layer(body, paint, 1), Layer(screen | lamp, glass, 1)]
    for wheel in (cx - 14, cx + 14):
        layers.append(Layer(ellipse(wheel, top + 13, 6.5, 6.5), np.asarray(TYRE, np.float32), 1))
        layers.append(Layer(ellipse(wheel, top + 13, 2.5, 2.5), np.full(3, 190, np.float32), 1))
    return layers


def _boat(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    hull = polygon([(cx - 27, top), (cx + 27, top), (cx + 17, top + 17), (cx - 17, top + 17)])
    mast = box(cx + 12, top - 24, cx + 14, top)
    sail = polygon([(cx + 14.5, top - 23), (cx + 14.5, top - 3), (cx + 26, top - 3)])
    return [
        Layer(hull, paint, 1),
        Layer(mast, np.asarray(WOOD, np.float32), 1),
        Layer(sail, np.full(3, 236, np.float32), 1),
    ]


def _plane(cx: float, top: float, paint: np.ndarray) -> list[Layer]:
    body = ellipse(cx, top + 7, 26, 7.5)
    fin = polygon([(cx - 24, top + 7), (cx - 27, top - 9), (cx - 20, top - 9), (cx - 12, top + 3)])
    wing = polygon([(cx - 4, top + 7), (cx + 9, top + 7), (cx - 5, top + 17), (cx - 14, top + 17)])
    propeller = box(cx + 25.5, top - 4, cx + 28, top + 18)
    return [
        Layer(body | fin, paint, 1),
        Layer(wing, paint * 0.45, 1),
        Layer(propeller, np.asarray(TYRE, np.float32), 1),
    ]


def _stick(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """From the hand at (x1, y1) up to what is held."""
    return polygon([(x0 - 0.9, y0), (x0 + 0.9, y0), (x1 + 0.9, y1), (x1 - 0.9, y1)])


def _flag(x: float, top: float, bottom: float, paint: np.ndarray) -> list[Layer]:
    cloth = polygon([(x, top - 1), (x + 22, top + 8), (x, top + 17)])
    pole = _stick(x, top - 1, x, bottom)
    return [Layer(pole, np.asarray(WOOD, np.float32), 1), Layer(cloth, paint, 1)]


def _balloon(x: float, top: float, bottom: float, paint: np.ndarray) -> list[Layer]:
    string = _stick(x + 9, top + 16, x, bottom)
    shine = ellipse(x + 5.5, top + 4, 2.2, 3)
    return [
        Layer(string, np.asarray(TYRE, np.float32), 1),
        Layer(ellipse(x + 9, top + 8, 9.5, 11), paint, 1),
        Layer(shine, np.full(3, 252, np.float32), 1),
    ]


def _flower(x: float, top: float, bottom: float, paint: np.ndarray) -> list[Layer]:
    cx, cy = x + 9, top + 8
    turns = [2 * math.pi * i / 5 for i in range(5)]
    petals = [ellipse(cx + 6 * math.sin(a), cy - 6 * math.cos(a), 4.8, 4.8) for a in turns]
    return [
        Layer(_stick(cx, cy, x, bottom), np.asarray(STEM, np.float32), 1),
        Layer(np.any(petals, axis=0), paint, 1),
        Layer(ellipse(cx, cy, 4, 4), paint * 0.3, 1),
    ]


_PROPS: dict[str, Callable[..., list[Layer]]] = {
    "wearing a hat": _hat,
    "wearing a crown": _crown,
    "wearing a bow": _bow,
    "driving a car": _car,
    "sailing a boat": _boat,
    "flying a plane": _plane,
    "holding a flag": _flag,
    "holding a balloon": _balloon,
    "holding a flower": _flower,
}


def _behaviour(rng: np.random.Generator, claim: Claim) -> list[Layer]:
    """Where actor and prop stand depends on the kind of activity alone, never on the prop."""
    colour = _pick(rng, COLOURS)
    prop = _colour(_pick(rng, COLOURS, without=colour))
    dx, dy = rng.uniform(-4, 4), rng.uniform(-3, 3)
    r = rng.uniform(13.5, 15.5)
    draw = _PROPS[claim.activity]

    def actor(cx: float, cy: float) -> Layer:
        return _shape(rng, claim.shape, colour, "", cx, cy, r, 0)

    if claim.activity in WORN:
        cx, cy = 32 + dx, 42 + dy
        return [actor(cx, cy), *draw(cx, cy - 0.82 * r, prop)]
    if claim.activity in VEHICLES:
        cx, top = 32 + dx, 42 + dy
        return [actor(cx - 4, top - 0.8 * r), *draw(cx, top, prop)]
    cx, cy = 21 + dx, 40 + dy
    return [actor(cx, cy), *draw(cx + r + 2, cy - 30, cy + r + 2, prop)]


def _attribute(rng: np.random.Generator, claim: Claim) -> list[Layer]:
    r = rng.uniform(19, 25)
    cx, cy = 32 + rng.uniform(-5, 5, size=2)
    return [_shape(rng, claim.shape, claim.colour, claim.texture, cx, cy, r, 0)]


def _position(rng: np.random.Generator, claim: Claim) -> list[Layer]:
    first = _pick(rng, COLOURS)
    second = _pick(rng, COLOURS, without=first)
    r1, r2 = rng.uniform(12, 14.2, size=2)
    near, far = 16.5 + rng.uniform(-2, 1.5), 47.5 + rng.uniform(-1.5, 2)
    side1 = 32 + rng.uniform(-7, 7)
    side2 = side1 + rng.uniform(-4, 4)
    one, two = {
        "above": ((side1, near), (side2, far)),
        "below": ((side1, far), (side2, near)),
        "on the left of": ((near, side1), (far, side2)),
        "on the right of": ((far, side1), (near, side2)),
    }[claim.relation]
    return [
        _shape(rng, claim.shape, first, "", *one, r1, 0),
        _shape(rng, claim.other, second, "", *two, r2, 1),
    ]


_LAYERS = {1: _behaviour, 2: _attribute, 3: _position}


def _compose(ground: np.ndarray, layers: list[Layer]) -> Picture:
    canvas = np.array(ground, dtype=np.uint8)
    count = 1 + max(layer.item for layer in layers)
    owned = np.zeros((count, drawing.BIG, drawing.BIG), dtype=np.uint8)
    for layer in layers:
        inside = layer.mask
        canvas[inside] = layer.paint[inside] if layer.paint.ndim == 3 else layer.paint
        owned[:, inside] = 0
        owned[layer.item, inside] = 255
    return Picture(drawing.shrink(canvas), np.stack([drawing.shrink(o) for o in owned]) > 127)


def _contrast(ground: np.ndarray, layers: list[Layer]) -> float:
    """Smallest RGB distance between an object's main colour and the mean ground under it."""
    distances = []
    for layer in layers:
        inside = layer.mask[::8, ::8]
        if not inside.any():
            continue
        under = ground[::8, ::8][inside].mean(axis=0)
        paint = layer.paint if layer.paint.ndim == 1 else layer.paint[::8, ::8].max(axis=(0, 1))
        distances.append(float(np.linalg.norm(under - paint)))
    return min(distances)


def render(prompt: str, rng: np.random.Generator) -> Picture:
    """A random scene of which the prompt is true."""
    claim = parse(prompt)
    layers = _LAYERS[claim.template](rng, claim)
    ground = drawing.background(rng)
    for _ in range(20):
        if _contrast(ground, layers) >= 70:
            break
        ground = drawing.background(rng)
    return _compose(ground, layers)


def random_prompt(rng: np.random.Generator, prompts: dict[int, tuple[str, ...]]) -> str:
    """A prompt from a template drawn uniformly; prompts maps template to its prompts."""
    options = prompts[int(rng.integers(1, 4))]
    return options[rng.integers(len(options))]
