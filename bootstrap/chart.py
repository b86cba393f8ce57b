"""Bars as an SVG picture, written by hand: no drawing library is worth its weight for this."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _LABELS, _BAR, _GAP, _HEAD = 720, 250, 20, 8, 46
_COLOURS = ("#2f6fab", "#8a9aa9", "#c98a2b", "#5b8c5a", "#8c5a84", "#a34f4f")


@dataclass(frozen=True)
class Bar:
    """`group` decides the colour."""

    label: str
    value: float
    group: str = ""


def bars(title: str, unit: str, values: Sequence[Bar]) -> str:
    """One picture; the longest bar fills the width."""
    groups = list(dict.fromkeys(bar.group for bar in values))
    longest = max((bar.value for bar in values), default=0.0) or 1.0
    height = _HEAD + len(values) * (_BAR + _GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="26" font-size="16">{escape(title)} ({escape(unit)})</text>',
    ]
    for number, bar in enumerate(values):
        top = _HEAD + number * (_BAR + _GAP)
        width = (_WIDTH - _LABELS - 80) * bar.value / longest
        colour = _COLOURS[groups.index(bar.group) % len(_COLOURS)]
        lines += [
            f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABELS + width + 6:.1f}" y="{top + 15}">{bar.value:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
