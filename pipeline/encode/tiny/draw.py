"""Draws captioned pictures of colored shapes from a seed.

A `Scene` shows one `Thing` (a colored shape), or two things in a spatial relation, on a plain background:

    rng = random.Random(7)
    scene = random_scene(rng)
    picture, words = render(scene, rng, 256), caption(scene, rng)

`wrong_color`, `wrong_shape` and `swapped_order` return near misses: scenes whose caption is almost right for the
original picture. The functions are deterministic: equal scenes and equal states of `rng` give equal bytes.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 24, 32),
    "orange": (250, 135, 10),
    "yellow": (250, 225, 30),
    "green": (30, 160, 50),
    "blue": (30, 70, 220),
    "purple": (130, 35, 175),
    "pink": (255, 145, 195),
    "brown": (120, 68, 28),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "black": (14, 14, 14),
    "gray": (135, 138, 140),
    "beige": (226, 208, 176),
}
RELATIONS: dict[str, tuple[int, int]] = {  # direction from the second thing to the first: (x, y), y grows downward
    "above": (0, -1),
    "below": (0, 1),
    "left of": (-1, 0),
    "right of": (1, 0),
}
CONVERSE = {"below": "above", "right of": "left of"}
RADII = {"small": 0.75, "medium": 1.0, "large": 1.2}  # in units of the usual radius; captions omit "medium"
WORDINGS = ("{}", "{}", "a picture of {}", "a drawing of {}", "a photo of {}", "there is {}")


def _polar(radii: list[float], corners: int, start: float = -math.pi / 2) -> Points:
    """`corners` points (x, y) around the origin. Their distances from the origin are the radii in turn."""
    angles = start + 2 * math.pi * np.arange(corners) / corners
    length = np.resize(np.array(radii), corners)
    return np.stack([length * np.cos(angles), length * np.sin(angles)], axis=1)


def _cross() -> Points:
    """The outline of a plus sign: the three corners of one arm, in four rotations."""
    arm = np.array([(0.33, -0.33), (1.0, -0.33), (1.0, 0.33)])
    quarter = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])


def _heart() -> Points:
    t = 2 * math.pi * np.arange(64) / 64
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) / 16


def _ring() -> Points:
    """The outline of a ring: a disk whose outline returns along an inner circle, so that filling it leaves a hole."""
    outer = _polar([1.0], 64)
    inner = 0.55 * outer[::-1]
    return np.concatenate([outer, outer[:1], inner[-1:], inner])


SHAPES: dict[str, Points] = {  # outlines with a radius of about 1; (corners, 2) as (x, y), y grows downward
    "circle": 0.95 * _polar([1.0], 64),
    "square": 0.85 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": np.array([(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]),
    "star": 1.1 * _polar([1.0, 0.42], 10),
    "cross": _cross(),
    "diamond": 1.05 * _polar([1.0, 0.62], 4),
    "ring": _ring(),
    "heart": _heart(),
}


@dataclass(frozen=True)
class Thing:
    """One colored shape: `color` of COLORS, `shape` of SHAPES, `size` of RADII."""

    color: str
    shape: str
    size: str = "medium"

    @property
    def words(self) -> str:
        """The thing in words, such as "a small red circle"."""
        size = "" if self.size == "medium" else self.size + " "
        noun = f"{size}{self.color} {self.shape}"
        return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@dataclass(frozen=True)
class Scene:
    """One thing, or two things related by `relation`, a key of RELATIONS, as in "`first` left of `second`"."""

    background: str
    first: Thing
    relation: str | None = None
    second: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """The one or two things, in the order of the caption."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def held_out(self) -> bool:
        """Whether a thing in the scene has a combination of color and shape that was kept out of training."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)

    @property
    def meaning(self) -> "Scene":
        """A canonical form, equal for scenes that look the same, such as "A below B" and "B above A"."""
        if self.relation in CONVERSE and self.second is not None:
            return Scene(self.background, self.second, CONVERSE[self.relation], self.first)
        return self


# Each color and each shape is in one of these combinations, which training never shows.
HELD_OUT = frozenset(zip(COLORS, SHAPES, strict=True))


def random_scene(rng: Random, held_out: bool = False) -> Scene:
    """A scene of one (30%) or two different things.

    Without `held_out`, neither thing is in HELD_OUT. With it, the first thing is, and the second can be.
    """
    background = rng.choice(list(BACKGROUNDS))
    first = _random_thing(rng, sorted(HELD_OUT) if held_out else _combinations(held_out=False))
    if rng.random() < 0.3:
        return Scene(background, first)
    others = [look for look in _combinations(held_out) if look != (first.color, first.shape)]
    return Scene(background, first, rng.choice(list(RELATIONS)), _random_thing(rng, others))


def caption(scene: Scene, rng: Random) -> str:
    """The scene in words. `rng` chooses among a few wordings."""
    words = scene.first.words
    if scene.second is not None:
        words = f"{words} {scene.relation} {scene.second.words}"
    return rng.choice(WORDINGS).format(f"{words} on a {scene.background} background")


def wrong_color(scene: Scene, rng: Random) -> Scene:
    """The scene with one thing in another color. Never adds one of HELD_OUT to a scene that has none."""
    return _change_one(scene, rng, lambda old, new: new[0] != old.color and new[1] == old.shape)


def wrong_shape(scene: Scene, rng: Random) -> Scene:
    """The scene with one thing in another shape. Never adds one of HELD_OUT to a scene that has none."""
    return _change_one(scene, rng, lambda old, new: new[0] == old.color and new[1] != old.shape)


def swapped_order(scene: Scene, rng: Random) -> Scene:
    """The scene with its two things swapped: the same words in another order.

    Raises ValueError for a scene of one thing. `rng` is unused, but gives all near misses the same signature.
    """
    if scene.second is None:
        raise ValueError("a scene of one thing has no order to swap")
    return replace(scene, first=scene.second, second=scene.first)


def render(scene: Scene, rng: Random, width: int, height: int | None = None) -> Image.Image:
    """An RGB picture of `width` x `height` pixels (square unless `height` is given).

    All things are inside the central square, so that a center crop keeps them. Position, size, angle and hue vary a
    little, light falls off to one side, and slight noise is added.
    """
    height = height or width
    pixels = np.empty((height, width, 3), dtype=np.float32)
    pixels[:] = _tint(BACKGROUNDS[scene.background], rng)
    for thing, (x, y), radius in _layout(scene, rng):
        mask = _mask(SHAPES[thing.shape], (x, y), radius, rng.uniform(-8, 8), (width, height))
        pixels += mask[:, :, None] * (_tint(COLORS[thing.color], rng) - pixels)
    pixels *= _light(rng, width, height)
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels += rng.uniform(0, 5) * noise.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def _combinations(held_out: bool) -> list[tuple[str, str]]:
    """The (color, shape) combinations used in training or, with `held_out`, all combinations."""
    return [(color, shape) for color in COLORS for shape in SHAPES if held_out or (color, shape) not in HELD_OUT]


def _random_thing(rng: Random, combinations: list[tuple[str, str]]) -> Thing:
    color, shape = rng.choice(combinations)
    return Thing(color, shape, rng.choice(("small", "medium", "medium", "medium", "large")))


def _change_one(scene: Scene, rng: Random, fits: Callable[[Thing, tuple[str, str]], bool]) -> Scene:
    """The scene with a new color and shape for one thing. `rng` chooses among the combinations that `fits` accepts."""
    changes_first = scene.second is None or rng.random() < 0.5
    old, other = (scene.first, scene.second) if changes_first else (scene.second, scene.first)
    assert old is not None
    taken = (other.color, other.shape) if other else None
    combinations = [look for look in _combinations(scene.held_out) if look != taken and fits(old, look)]
    color, shape = rng.choice(combinations)
    new = replace(old, color=color, shape=shape)
    return replace(scene, first=new) if changes_first else replace(scene, second=new)


def _layout(scene: Scene, rng: Random) -> list[tuple[Thing, tuple[float, float], float]]:
    """The center of each thing, relative to the picture's center, and its radius, in units of the central square's
    side."""
    dx, dy = RELATIONS[scene.relation] if scene.relation else (0, 0)
    usual = 0.19 if scene.second else 0.28
    layout = []
    for thing, side in zip(scene.things, (1, -1), strict=False):
        x = 0.24 * dx * side + rng.uniform(-0.025, 0.025)
        y = 0.24 * dy * side + rng.uniform(-0.025, 0.025)
        layout.append((thing, (x, y), usual * RADII[thing.size] * rng.uniform(0.94, 1.06)))
    return layout


def _mask(outline: Points, center: tuple[float, float], radius: float, degrees: float, size: tuple[int, int]) -> Pixels:
    """The fraction of each pixel that the rotated outline covers: (height, width) in 0..1."""
    finer = 4 if max(size) <= 256 else 2  # draw larger, then average down, for smooth edges
    turn = math.radians(degrees)
    rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    points = (radius * outline @ rotation + center) * min(size) + np.array(size) / 2
    mask = Image.new("L", (size[0] * finer, size[1] * finer))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in (points * finer).tolist()], fill=255)
    return np.asarray(mask.reduce(finer), dtype=np.float32) / np.float32(255)


def _tint(color: tuple[int, int, int], rng: Random) -> Pixels:
    """The color with hue and brightness slightly changed: (3,) in 0..255."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    hue, value = (hue + rng.uniform(-0.012, 0.012)) % 1, value * rng.uniform(0.94, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255


def _light(rng: Random, width: int, height: int) -> Pixels:
    """A factor near 1 that falls off by up to 10% across the picture: (height, width, 1)."""
    across, down = rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    return np.asarray(1 + across * x + down * y, dtype=np.float32)
