"""Defines the box of every chart, in SVG user units, and its axes: round values and their labels.

All charts have the same box, WIDTH x HEIGHT, with the plot inside margins.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 24, 32
"""Margins around the plot."""
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]
_MAX_TICKS = 6
LARGEST, _SMALLEST_SPAN = 8e307, 1e-300
_CHAR_WIDTH = 8
"""Maximum width of a character in a label."""


@dataclass(frozen=True)
class Tick:
    """A labeled position on an axis."""

    at: float
    label: str


def drawable(value: float) -> float:
    """The value, or the nearest one that an axis can have: beyond +-8e307, the span of an axis could be infinite."""
    return min(max(float(value), -LARGEST), LARGEST)


class Axis:
    """Maps values to x positions. Its ends are `drawable`."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, value: float) -> float:
        """The position of a value."""
        return LEFT + PLOT_WIDTH * ((drawable(value) - self.low) / (self.high - self.low))

    def ticks(self, whole: bool = False) -> list[Tick]:
        """A few round values as ticks. `whole`: only whole numbers if the span is short."""
        if whole and self.high - self.low < _MAX_TICKS:
            values = [(float(value), f"{value:,}") for value in range(math.ceil(self.low), math.floor(self.high) + 1)]
        else:
            values = _that_fit(self.low, self.high)
        return [Tick(round(self.x(value), 1), text) for value, text in values]


def _that_fit(low: float, high: float) -> list[tuple[float, str]]:
    """`round_values`, few enough that their labels do not touch each other."""
    for most in range(_MAX_TICKS, 1, -1):
        values = round_values(low, high, most)
        if sum(_CHAR_WIDTH * (len(text) + 1) for _, text in values) <= PLOT_WIDTH:
            break
    return values


def round_step(span: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that fits at most `most` times into the span."""
    smallest = max(span, _SMALLEST_SPAN) / most
    power = 10.0 ** math.floor(math.log10(smallest))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= smallest * (1 - 1e-9))


def round_values(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """(value, label) for at most `most` + 1 multiples of a round step between `low` and `high`."""
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = -math.floor(math.log10(step) + 1e-9)
    values = [round(number * step, decimals) for number in range(first, last + 1)]  # 0.7, whereas 7 * 0.1 is above it
    return [(value, label(value, step)) for value in values]


def label(value: float, step: float) -> str:
    """The value with as many decimals as the step, and with commas between thousands. Very large and very small numbers
    have exponents."""
    power = math.floor(math.log10(step) + 1e-9)
    largest = max(abs(value), step)
    if largest >= 1e9 or power < -6:
        digits = max(0, math.floor(math.log10(largest) + 1e-9) - power)
        text = f"{value:.{digits}e}".replace("e+", "e") if abs(value) > step / 2 else "0"
    else:
        text = f"{value:,.{max(0, -power)}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def four_digits(value: float) -> str:
    """A score or threshold with four significant digits."""
    return f"{value:.4g}".replace("-", "−")


def short_count(count: float) -> str:
    """A count in short form, such as `950`, `1.2k` or `35M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            text = f"{count / size:.1f}"
            return text.removesuffix(".0") + unit
    return f"{count:.0f}"
