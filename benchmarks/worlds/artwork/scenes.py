"""Pictures of 64 x 64 pixels with captions, each a pure function of a random generator.

A scene is what a caption can say: a style, one object or two, perhaps a background. Position, size, mirroring
and what the caption leaves open vary from picture to picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from benchmarks.worlds.artwork.objects import COLOURS
from benchmarks.worlds.artwork.pack import Artwork

SIZE = 64
CELL = 8
"""Pixels of a latent; places are multiples of it. Between them, a drawing would be another pattern of latents
at each of eight times eight places, all to be learnt."""
MARGIN = 1
"""Pixels around a drawing that stay background."""
ONE = (48, 56)
"""Sides of a single object, with its margin: fewer pixels blur the details that tell neighbours apart."""
TWO = (32,)
"""Of one of two objects: together they fill the width."""

Array = np.ndarray
T = TypeVar("T")

# Light enough for what is drawn in #202020, and paler than most objects.
BACKGROUNDS: dict[str, tuple[int, int, int]] = dict(
    zip(
        COLOURS,
        (
            *((255, 255, 255), (190, 190, 190), (255, 190, 215), (250, 140, 130), (255, 190, 110)),
            *((255, 235, 120), (150, 215, 140), (140, 190, 250), (195, 160, 240)),
        ),
        strict=True,
    )
)
LIGHTNESS, TINT = 12, 4
"""How far a coloured background is lighter or darker than its colour, of 255, and each channel on its own: a
colour's name means a range."""
UNNAMED = {"white": 0.5, "colour": 0.25, "gradient": 0.25}
"""Backgrounds of captions that name none. White is what a prompt without one draws most often, which leaves
the guided picture clean; the others keep the objects apart from it."""

PROMPT = "a {object} in {style} style"
"""The usual prompt. `objects.choose` takes only names for which its article is right."""
OTHER_WORDINGS = ("a picture of a {object} in {style} style", "a {object}, {style} style")
OTHER_SHARE = 0.15
"""Of captions by name, those in another wording: enough that prompts need not be literal."""
KINDS = {"name": 0.45, "synonym": 0.10, "category": 0.10, "pair": 0.26, "object": 0.05, "style": 0.04}
"""Kinds of captions. Prompts by name are judged, so most are of that kind. A synonym is seldom seen and a
category has many members to cover: each needs a tenth. Two objects are hardest to draw. "a cat" and "Noto
style" alone are what a concept is called."""
BACKGROUND_SHARE = 0.15
"""Of captions with an object and a style, those that name the background."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows and what its caption says.

    Attributes:
        kind: one of KINDS.
        style: name of the style.
        objects: names of one or two objects, from left to right.
        background: one of BACKGROUNDS if the caption names it, else None.
    """

    kind: str
    style: str
    objects: tuple[str, ...]
    background: str | None
    caption: str


def with_article(noun: str) -> str:
    """ "a cat", "an animal"; by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(said: str, style: str, background: str | None = None) -> str:
    """ "a cat in Noto style on a blue background".

    Args:
        said: what is said of the objects, with article.
    """
    place = f" on {with_article(background)} background" if background else ""
    return f"{said} in {style} style{place}"


def compose(artwork: Artwork, rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A random scene: kinds by their shares, and in a kind everything that it can show equally often.

    Args:
        kind: one of KINDS; None draws one.
    """
    if kind is None:
        kind = _weighted(KINDS, rng)
    if (kind == "synonym" and not artwork.synonyms) or (kind == "category" and not artwork.categories):
        kind = "name"
    style = _pick(artwork.styles, rng)
    named = kind not in ("object", "style") and rng.random() < BACKGROUND_SHARE
    background = _pick(tuple(BACKGROUNDS), rng) if named else None
    objects: tuple[str, ...] = (_pick(artwork.names, rng),)
    if kind == "synonym":
        synonyms = {obj.name: obj.synonyms for obj in artwork.objects if obj.synonyms}
        objects = (_pick(tuple(synonyms), rng),)
        text = caption(with_article(_pick(synonyms[objects[0]], rng)), style, background)
    elif kind == "category":
        category = _pick(tuple(artwork.categories), rng)
        objects = (_pick(artwork.categories[category], rng),)
        text = caption(with_article(category), style, background)
    elif kind == "pair":
        first, second = rng.choice(len(artwork.names), 2, replace=False)
        objects = (artwork.names[first], artwork.names[second])
        text = caption(" and ".join(map(with_article, objects)), style, background)
    elif kind == "object":
        text = with_article(objects[0])
    elif kind == "style":
        text = f"{style} style"
    else:
        text = caption(with_article(objects[0]), style, background)
        if not background and rng.random() < OTHER_SHARE:
            text = _pick(OTHER_WORDINGS, rng).format(object=objects[0], style=style)
    return Scene(kind, style, objects, background, text)


def draw(artwork: Artwork, scene: Scene, rng: np.random.Generator) -> Array:
    """One picture of a scene: (SIZE, SIZE, 3) uint8."""
    picture = Image.fromarray(_background(scene.background, rng))
    sprites = [_vary(artwork.sprite(scene.style, name), len(scene.objects), rng) for name in scene.objects]
    for sprite, place in zip(sprites, _places(sprites, rng), strict=True):
        picture.paste(sprite, place, sprite)
    return np.asarray(picture)


def _vary(sprite: Array, objects: int, rng: np.random.Generator) -> Image.Image:
    """At a random size, mirrored or not, with its margin."""
    side = _pick(ONE if objects == 1 else TWO, rng) - 2 * MARGIN
    image = Image.fromarray(sprite[:, ::-1] if rng.random() < 0.5 else sprite)
    return ImageOps.expand(image.resize((side, side), Image.Resampling.LANCZOS), MARGIN, (0, 0, 0, 0))


def _places(sprites: list[Image.Image], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Upper left corners: anywhere, or one in the left half and one in the right, each at any height."""
    width = SIZE // len(sprites)
    return [
        (i * width + _place(width - sprite.width, rng), _place(SIZE - sprite.height, rng))
        for i, sprite in enumerate(sprites)
    ]


def _place(room: int, rng: np.random.Generator) -> int:
    return CELL * int(rng.integers(room // CELL + 1))


def _background(name: str | None, rng: np.random.Generator) -> Array:
    """(SIZE, SIZE, 3) uint8: of a named colour, or one of UNNAMED."""
    kind = _weighted(UNNAMED, rng) if name is None else "colour"
    if kind == "white" or name == "white":
        return np.full((SIZE, SIZE, 3), 255, np.uint8)
    first = _colour(name, rng)
    if kind == "colour":
        return np.broadcast_to(first.round().astype(np.uint8), (SIZE, SIZE, 3)).copy()
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    slope = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5
    mixed = first + slope[..., None] * (_colour(None, rng) - first)
    return mixed.round().astype(np.uint8)


def _colour(name: str | None, rng: np.random.Generator) -> Array:
    """(3,) float in [0, 255]: a colour of that name, or of any."""
    base = BACKGROUNDS[_pick(COLOURS[1:], rng) if name is None else name]
    return np.clip(np.array(base) + rng.uniform(-LIGHTNESS, LIGHTNESS) + rng.uniform(-TINT, TINT, 3), 0, 255)


def _pick(items: tuple[T, ...], rng: np.random.Generator) -> T:
    return items[rng.integers(len(items))]


def _weighted(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))
