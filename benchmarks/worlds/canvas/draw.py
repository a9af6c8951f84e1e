"""Procedural drawings: 8 objects x 8 styles, 32 x 32 pixels, each a pure function of a random generator.

An object is three masks in [0, 1] (body, accent, outline), drawn at four times the size and averaged
down. A style is a function from those masks to an RGB image in [0, 1]. Position, size, rotation,
mirroring and colours vary from drawing to drawing; what makes the object and the style does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 32
SUPERSAMPLING = 4
STROKE = 3.0  # outline width in pixels: thinner lines do not survive the autoencoder

Array = np.ndarray
Polygon = Array  # (N, 2), coordinates in [-1, 1], y downwards


@dataclass(frozen=True)
class Masks:
    """Body, accent and outline of an object, each (SIZE, SIZE) in [0, 1]."""

    body: Array
    accent: Array
    outline: Array


# --- objects: polygons of the body and of the accent ------------------------------------------------


def _ellipse(x: float, y: float, rx: float, ry: float, points: int = 28) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _polygon(*points: tuple[float, float]) -> Polygon:
    return np.array(points, dtype=float)


def _star_polygon(outer: float, inner: float, spikes: int = 5) -> Polygon:
    angle = np.arange(2 * spikes) * np.pi / spikes - np.pi / 2
    radius = np.where(np.arange(2 * spikes) % 2 == 0, outer, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _petals() -> list[Polygon]:
    angles = np.arange(5) * 2 * np.pi / 5 - np.pi / 2
    return [_ellipse(0.44 * np.cos(a), -0.3 + 0.44 * np.sin(a), 0.27, 0.27) for a in angles]


SHAPES: dict[str, tuple[list[Polygon], list[Polygon]]] = {
    "house": (
        [_polygon((-0.65, -0.1), (0.65, -0.1), (0.65, 0.85), (-0.65, 0.85))],
        [
            _polygon((-0.95, -0.1), (0, -0.9), (0.95, -0.1)),
            _polygon((-0.2, 0.3), (0.2, 0.3), (0.2, 0.85), (-0.2, 0.85)),
        ],
    ),
    "tree": (
        [_ellipse(0, -0.55, 0.45, 0.4), _ellipse(-0.4, -0.1, 0.42, 0.38), _ellipse(0.4, -0.1, 0.42, 0.38)],
        [_polygon((-0.16, 0.2), (0.16, 0.2), (0.22, 0.95), (-0.22, 0.95))],
    ),
    "fish": (
        [_ellipse(-0.2, 0, 0.7, 0.46)],
        [_polygon((0.38, 0), (0.98, -0.55), (0.98, 0.55)), _ellipse(-0.52, -0.12, 0.11, 0.11)],
    ),
    "flower": (
        _petals(),
        [_ellipse(0, -0.3, 0.22, 0.22), _polygon((-0.1, 0.3), (0.1, 0.3), (0.1, 1), (-0.1, 1))],
    ),
    "boat": (
        [_polygon((-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85))],
        [_polygon((-0.08, 0.22), (-0.08, -0.95), (0.75, 0.22))],
    ),
    "cat": (
        [
            _ellipse(0, 0.15, 0.75, 0.65),
            _polygon((-0.74, 0.05), (-0.72, -0.9), (-0.1, -0.4)),
            _polygon((0.74, 0.05), (0.72, -0.9), (0.1, -0.4)),
        ],
        [_ellipse(-0.3, 0.05, 0.13, 0.16), _ellipse(0.3, 0.05, 0.13, 0.16), _ellipse(0, 0.42, 0.14, 0.1)],
    ),
    "star": ([_star_polygon(1.0, 0.42)], []),
    "car": (
        [
            _polygon((-0.95, 0), (0.95, 0), (0.95, 0.45), (-0.95, 0.45)),
            _polygon((-0.6, 0), (-0.35, -0.5), (0.3, -0.5), (0.6, 0)),
        ],
        [_ellipse(-0.5, 0.5, 0.25, 0.25), _ellipse(0.5, 0.5, 0.25, 0.25)],
    ),
}


def object_masks(name: str, rng: np.random.Generator) -> Masks:
    """Draw the object `name` with a random pose."""
    size = SIZE * SUPERSAMPLING
    angle = rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.9, 1.1)
    radius = size * rng.uniform(0.34, 0.42)
    centre = size / 2 + size * rng.uniform(-0.06, 0.06, size=2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.array([stretch * rng.choice([-1, 1]), 1 / stretch]) * radius

    def place(polygons: list[Polygon]) -> list[list[tuple[float, float]]]:
        return [[tuple(p) for p in (polygon * scale) @ rotation.T + centre] for polygon in polygons]

    def fill(polygons: list[list[tuple[float, float]]]) -> Image.Image:
        image = Image.new("L", (size, size))
        for polygon in polygons:
            ImageDraw.Draw(image).polygon(polygon, fill=255)
        return image

    body_polygons, accent_polygons = (place(polygons) for polygons in SHAPES[name])
    body, accent = fill(body_polygons), fill(accent_polygons)
    border = int(STROKE * SUPERSAMPLING) | 1
    outline = np.zeros((size, size), dtype=np.float32)
    for mask in (body, accent):
        grown = mask.filter(ImageFilter.MaxFilter(border // 2 | 1))
        shrunk = mask.filter(ImageFilter.MinFilter(border // 2 | 1))
        outline = np.maximum(outline, _float(grown) - _float(shrunk))
    return Masks(_shrink(_float(body) * (1 - _float(accent))), _shrink(_float(accent)), _shrink(outline))


def _float(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float32) / 255


def _shrink(mask: Array) -> Array:
    return mask.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING).mean(axis=(1, 3))


# --- styles: masks to an RGB image --------------------------------------------------------------------

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def _paint(image: Array, mask: Array, colour: Array) -> Array:
    """Lay `colour` ((3,) or (SIZE, SIZE, 3)) over the image where the mask is."""
    return image * (1 - mask[..., None]) + colour * mask[..., None]


def _flat(colour: tuple[float, float, float], rng: np.random.Generator, jitter: float = 0.05) -> Array:
    return np.clip(np.array(colour) + rng.uniform(-jitter, jitter, 3), 0, 1)


def _choice(colours: list[tuple[float, float, float]], rng: np.random.Generator, count: int) -> list[Array]:
    return [_flat(colours[i], rng) for i in rng.permutation(len(colours))[:count]]


def _blur(mask: Array, radius: float) -> Array:
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return _float(image.filter(ImageFilter.GaussianBlur(radius)))


def _stripes(phase: Array) -> Array:
    return 0.5 + 0.5 * np.sin(phase)


def van_gogh(m: Masks, rng: np.random.Generator) -> Array:
    """Swirling bands of blue around an eye in the sky, the object in yellow and orange strokes."""
    centre = rng.uniform(4, 28, size=2)
    distance = np.hypot(_X - centre[0], _Y - centre[1])
    swirl = _stripes(
        distance * 2 * np.pi / 6.5 + np.arctan2(_Y - centre[1], _X - centre[0]) + rng.uniform(0, 6)
    )[..., None]
    image = _flat((0.08, 0.16, 0.48), rng) * (1 - swirl) + _flat((0.45, 0.68, 0.88), rng) * swirl
    image = _paint(image, m.body, _flat((0.95, 0.78, 0.15), rng) * (1 - 0.25 * swirl))
    image = _paint(image, m.accent, _flat((0.85, 0.42, 0.1), rng) * (1 - 0.2 * swirl))
    return _paint(image, 0.8 * m.outline, _flat((0.05, 0.08, 0.25), rng))


def mosaic(m: Masks, rng: np.random.Generator) -> Array:
    """Square tiles of uneven brightness with dark grout between them: dark ground, light object."""
    (ground,) = _choice([(0.1, 0.4, 0.4), (0.5, 0.16, 0.12), (0.22, 0.2, 0.42), (0.15, 0.35, 0.15)], rng, 1)
    body, accent = _choice([(0.95, 0.85, 0.6), (0.9, 0.55, 0.3), (0.6, 0.85, 0.8), (0.92, 0.7, 0.75)], rng, 2)
    image = np.broadcast_to(ground, (SIZE, SIZE, 3))
    image = _paint(_paint(image, m.body, body), m.accent, accent)
    tiles = rng.uniform(0.75, 1.15, size=(SIZE // 4 + 1, SIZE // 4 + 1)).repeat(4, 0).repeat(4, 1)
    dx, dy = rng.integers(0, 4, size=2)
    image = image * tiles[dy : dy + SIZE, dx : dx + SIZE, None]
    grout = np.maximum((_X + dx) % 4 == 0, (_Y + dy) % 4 == 0).astype(np.float32)
    return _paint(image, 0.6 * grout, _flat((0.08, 0.07, 0.06), rng, 0.02))


def neon(m: Masks, rng: np.random.Generator) -> Array:
    """A glowing outline on black."""
    colour = _flat(
        [(1.0, 0.2, 0.8), (0.15, 0.95, 1.0), (0.35, 1.0, 0.25), (1.0, 0.55, 0.1)][rng.integers(4)], rng
    )
    image = np.broadcast_to(_flat((0.04, 0.03, 0.08), rng, 0.02), (SIZE, SIZE, 3))
    image = _paint(image, 0.55 * _blur(m.outline, 2.0), colour)
    image = _paint(image, 0.95 * m.outline, colour)
    return _paint(image, 0.45 * np.clip(m.outline * 2 - 1, 0, 1), np.ones(3))


def pop_art(m: Masks, rng: np.random.Generator) -> Array:
    """Halftone dots on a loud ground, flat colours, a thick black outline."""
    ground, dots, body, accent = _choice(
        [(1, 0.9, 0.1), (0.95, 0.15, 0.5), (0.1, 0.75, 0.95), (0.95, 0.25, 0.15), (0.98, 0.98, 0.98)], rng, 4
    )
    dx, dy = rng.uniform(0, 6, size=2)
    dot = np.clip(2.3 - np.hypot((_X + dx) % 6 - 3, (_Y + dy) % 6 - 3), 0, 1)
    image = _paint(np.broadcast_to(ground, (SIZE, SIZE, 3)), dot, dots)
    image = _paint(_paint(image, m.body, body), m.accent, accent)
    return _paint(image, m.outline, np.full(3, 0.03))


def sketch(m: Masks, rng: np.random.Generator) -> Array:
    """Pencil outline and diagonal hatching on white paper."""
    paper = 0.96 + rng.normal(0, 0.015, size=(SIZE, SIZE, 1))
    image = np.broadcast_to(paper, (SIZE, SIZE, 3))
    slant = (_X + rng.choice([-1, 1]) * _Y) * 2 * np.pi / 5.5 + rng.uniform(0, 6)
    hatching = np.clip(m.body * 0.45 + m.accent * 0.75, 0, 1) * _stripes(slant)
    image = _paint(image, hatching, np.full(3, rng.uniform(0.3, 0.42)))
    return _paint(image, 0.9 * m.outline, np.full(3, rng.uniform(0.2, 0.32)))


def watercolour(m: Masks, rng: np.random.Generator) -> Array:
    """Pale washes with soft edges, no outline."""
    ground, body, accent = _choice(
        [(0.55, 0.75, 0.9), (0.95, 0.6, 0.65), (0.6, 0.8, 0.55), (0.95, 0.8, 0.5), (0.72, 0.6, 0.85)], rng, 3
    )
    patch = np.exp(-((_X - rng.uniform(4, 28)) ** 2 + (_Y - rng.uniform(4, 28)) ** 2) / 180)
    image = _paint(
        np.broadcast_to(_flat((0.97, 0.95, 0.9), rng, 0.02), (SIZE, SIZE, 3)), 0.45 * patch, ground
    )
    soft_body, soft_accent = _blur(m.body, 1.1), _blur(m.accent, 0.9)
    fade = 0.7 + 0.3 * _Y[..., None] / SIZE
    image = _paint(image, 0.9 * soft_body, body * fade)
    return _paint(image, 0.95 * soft_accent, accent * 0.75)


def blueprint(m: Masks, rng: np.random.Generator) -> Array:
    """White lines on blue paper with a grid."""
    image = np.broadcast_to(_flat((0.1, 0.25, 0.68), rng, 0.04), (SIZE, SIZE, 3))
    dx, dy = rng.integers(0, 8, size=2)
    grid = np.maximum((_X + dx) % 8 < 1, (_Y + dy) % 8 < 1).astype(np.float32)
    image = _paint(image, 0.35 * grid, _flat((0.55, 0.7, 0.95), rng, 0.03))
    image = _paint(image, 0.25 * m.accent, np.ones(3))
    return _paint(image, m.outline, _flat((0.95, 0.97, 1.0), rng, 0.02))


def silhouette(m: Masks, rng: np.random.Generator) -> Array:
    """A black shape before a sunset."""
    height = np.clip(_Y[..., None] / SIZE + rng.uniform(-0.1, 0.1), 0, 1)
    image = _flat((0.42, 0.12, 0.5), rng) * (1 - height) + _flat((1.0, 0.6, 0.15), rng) * height
    solid = np.clip(m.body + m.accent + 0.5 * m.outline, 0, 1)
    return _paint(image, solid, np.full(3, 0.03))


STYLES: dict[str, Callable[[Masks, np.random.Generator], Array]] = {
    "Van Gogh": van_gogh,
    "Mosaic": mosaic,
    "Neon": neon,
    "Pop Art": pop_art,
    "Sketch": sketch,
    "Watercolour": watercolour,
    "Blueprint": blueprint,
    "Silhouette": silhouette,
}
OBJECTS: list[str] = list(SHAPES)
PROMPT = "a {object} image in {style} style"


def draw(style: str, object_name: str, rng: np.random.Generator) -> Array:
    """One drawing: (SIZE, SIZE, 3) uint8."""
    image = STYLES[style](object_masks(object_name, rng), rng)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
