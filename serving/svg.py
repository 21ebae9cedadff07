"""Axes of charts in HTML pages: round ticks, a grid, and labels that do not overlap.

The pages have to work without scripts and without a network, so charts are plain SVG text.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

LETTER, LINE = 6.4, 13.0
"""Average width of a letter and height of a line, in pixels, in the pages' font of 11 pixels."""
LOG_STEPS = ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
SIDES = (
    *(("start", 8, 4), ("end", -8, 4), ("middle", 0, -9), ("middle", 0, 17)),
    *(("start", 8, 15), ("start", 8, -7), ("end", -8, 15), ("end", -8, -7)),
)
"""Positions of a label: right of its point, left, above, below, and the corners; as anchor and offset in pixels."""


class Tick(NamedTuple):
    """A value on an axis, and its text."""

    value: float
    text: str


class Scale:
    """A linear map from values to pixels."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high = low, high
        self._start, self._factor = start, (stop - start) / ((high - low) or 1.0)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self._start + (value - self.low) * self._factor


def ticks(low: float, high: float, most: int = 6) -> list[Tick]:
    """At most `most` round numbers in a range, at steps of 1, 2 or 5 times a power of ten.

    >>> [tick.text for tick in ticks(0.7414, 0.7776)]
    ['0.75', '0.76', '0.77']
    >>> [tick.text for tick in ticks(0, 0.5)]
    ['0.0', '0.1', '0.2', '0.3', '0.4', '0.5']
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(times * power for times in (1, 2, 5, 10) if (high - low) / (times * power) < most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [Tick(number * step, f"{number * step:.{digits}f}") for number in numbers]


def byte_ticks(low: float, high: float, most: int = 8) -> list[Tick]:
    """At most `most` round numbers of bytes for a logarithmic axis, as dense as possible.

    >>> [tick.text for tick in byte_ticks(9e3, 2.1e6)]
    ['10 kB', '20 kB', '50 kB', '100 kB', '200 kB', '500 kB', '1 MB', '2 MB']
    >>> [tick.text for tick in byte_ticks(206_000, 214_000)]
    ['206 kB', '208 kB', '210 kB', '212 kB', '214 kB']
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [[step * 10.0**decade for decade in decades for step in steps] for steps in LOG_STEPS]
    inside = [[value for value in values if low <= value <= high] for values in choices]
    found = next((values for values in inside if len(values) <= most), inside[-1])
    if len(found) < 3:
        found = [tick.value for tick in ticks(low, high)]
    return [Tick(value, bytes_text(value)) for value in found]


def bytes_text(value: float) -> str:
    """A number of bytes for people.

    >>> bytes_text(512), bytes_text(206_019), bytes_text(1.5e6)
    ('512 B', '206 kB', '1.5 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g} B"


def text_at(x: float, y: float, text: str, side: str = "middle") -> str:
    """An escaped text; `side` is its anchor."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{side}">{escape(text)}</text>'


def y_axis(scale: Scale, marks: Iterable[Tick], left: float, right: float) -> str:
    """A grid line for each tick, and its text to the left of the lines."""
    places = [(scale.at(value), text) for value, text in marks]
    return "".join(_grid_line(left, y, right, y) + text_at(left - 6, y + 4, text, "end") for y, text in places)


def x_axis(scale: Scale, marks: Iterable[Tick], top: float, bottom: float) -> str:
    """A grid line for each tick, and its text below the lines."""
    places = [(scale.at(value), text) for value, text in marks]
    return "".join(_grid_line(x, top, x, bottom) + text_at(x, bottom + 15, text) for x, text in places)


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def y_title(text: str, x: float, y: float) -> str:
    """The title of the y axis, rotated."""
    place = f'x="{x:.1f}" y="{y:.1f}" transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text {place} text-anchor="middle">{escape(text)}</text>'


def labels(
    named: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]], left: float, right: float
) -> str:
    """Names next to their points, in order; a name that would cover a point, another name or the frame is left out."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    shown: list[str] = []
    for x, y, text in named:
        width = LETTER * len(text)
        for side, across, down in SIDES:
            first = x + across - {"start": 0.0, "middle": width / 2, "end": width}[side]
            box = (first, y + down - LINE + 2, first + width, y + down + 2)
            if box[0] >= left and box[2] <= right and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                shown.append(text_at(x + across, y + down, text, side))
                break
    return "".join(shown)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def shortened(name: str, most: int = 32) -> str:
    """A name cut to at most `most` letters in its middle, since names often differ at their ends.

    >>> shortened("a film", 6), shortened("a longer film", 8)
    ('a film', 'a l…film')
    """
    return name if len(name) <= most else f"{name[: most - 1 - most // 2]}…{name[-(most // 2) :]}"
