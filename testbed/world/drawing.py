"""Silhouettes, fills and backgrounds, drawn at four times the final size.

Lengths and positions are in final pixels (0 to 64); masks are bool arrays (256, 256).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SCALE = 4
BIG = SIZE * SCALE

RGB = {
    "red": (214, 32, 36),
    "yellow": (246, 214, 24),
    "green": (28, 148, 52),
    "blue": (28, 72, 216),
    "purple": (140, 36, 172),
    "white": (250, 250, 250),
}
Y, X = (np.mgrid[0:BIG, 0:BIG].astype(np.float32) + 0.5) / SCALE

Point = tuple[float, float]


def polygon(points: list[Point]) -> np.ndarray:
    image = Image.new("L", (BIG, BIG))
    ImageDraw.Draw(image).polygon([(x * SCALE, y * SCALE) for x, y in points], fill=1)
    return np.asarray(image) > 0


def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return ((X - cx) / rx) ** 2 + ((Y - cy) / ry) ** 2 <= 1


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return (x0 <= X) & (x1 >= X) & (y0 <= Y) & (y1 >= Y)


def _outline(shape: str) -> list[Point]:
    """Outline in units of the radius, y downwards."""
    if shape == "star":
        turns = [(-math.pi / 2 + i * math.pi / 5, 1.15 if i % 2 == 0 else 0.5) for i in range(10)]
        return [(r * math.cos(a), r * math.sin(a) + 0.08) for a, r in turns]
    if shape == "heart":
        ts = np.linspace(0, 2 * math.pi, 60)
        xs = 16 * np.sin(ts) ** 3
        ys = 13 * np.cos(ts) - 5 * np.cos(2 * ts) - 2 * np.cos(3 * ts) - np.cos(4 * ts)
        return [(x / 15.5, -y / 15.5 - 0.1) for x, y in zip(xs, ys, strict=True)]
    if shape == "triangle":
        return [(0, -1.05), (1.1, 0.85), (-1.1, 0.85)]
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "cross":
        w, e = 0.34, 1.0
        return [(-w, -e), (w, -e), (w, -w), (e, -w), (e, w), (w, w),
                (w, e), (-w, e), (-w, w), (-e, w), (-e, -w), (-w, -w)]  # fmt: skip
    raise ValueError(f"no outline for {shape!r}")


def silhouette(shape: str, cx: float, cy: float, radius: float, angle: float) -> np.ndarray:
    """Mask (256, 256) of a shape; angle in radians."""
    if shape == "circle":
        return ellipse(cx, cy, radius, radius)
    if shape == "ring":
        hole = ellipse(cx, cy, 0.52 * radius, 0.52 * radius)
        return ellipse(cx, cy, radius, radius) & ~hole
    cos, sin = math.cos(angle), math.sin(angle)
    if shape == "moon":
        shift, bitten = 0.62 * radius, 0.8 * radius
        bite = ellipse(cx + shift * cos, cy + shift * sin, bitten, bitten)
        return ellipse(cx, cy, radius, radius) & ~bite
    points = [
        (cx + radius * (x * cos - y * sin), cy + radius * (x * sin + y * cos))
        for x, y in _outline(shape)
    ]
    return polygon(points)


def fill(colour: str, texture: str, phase: Point) -> np.ndarray:
    """Paint (256, 256, 3), or (3,) for texture "" (plain); phase shifts the pattern."""
    base = np.asarray(RGB[colour], dtype=np.float32)
    if not texture:
        return base
    x, y = X + np.float32(phase[0]), Y + np.float32(phase[1])
    if texture == "striped":
        second = np.fmod(x + y, 11) < 5
    elif texture == "dotted":
        second = (np.fmod(x, 10) - 5) ** 2 + (np.fmod(y, 10) - 5) ** 2 < 3.1**2
    else:
        second = np.fmod(x // 6.5 + y // 6.5, 2) < 1
    return np.where(second[..., None], base * np.float32(0.28), base)


def background(rng: np.random.Generator) -> np.ndarray:
    """Dull paint (256, 256, 3): flat, a gradient, or a wall over a floor."""
    level = rng.uniform(70, 200)
    first, second = (level + rng.uniform(-34, 34, size=3) for _ in range(2))
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(first.astype(np.float32), (BIG, BIG, 3))
    if kind == 1:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = ((X - 32) * math.cos(angle) + (Y - 32) * math.sin(angle)) / 90 + 0.5
        weight = np.clip(ramp, 0, 1)[..., None]
    else:
        weight = (rng.uniform(36, 56) < Y[..., None]).astype(np.float32)
    return first.astype(np.float32) + weight * (second - first).astype(np.float32)


def shrink(picture: np.ndarray) -> np.ndarray:
    """uint8 (256, 256[, 3]) to (64, 64[, 3]), the mean of 4x4 blocks."""
    return np.asarray(Image.fromarray(picture).reduce(SCALE))
