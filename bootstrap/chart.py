"""Bars as an SVG picture, written by hand: no drawing library is worth its weight for this."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _LABELS, _BAR, _GAP, _HEAD = 720, 250, 20, 8, 46
_CAPTION = 30
"""The height of what stands over each panel, where there are several."""
_EDGE = 8
_COLOURS = ("#2f6fab", "#8a9aa9", "#c98a2b", "#5b8c5a", "#8c5a84", "#a34f4f")


@dataclass(frozen=True)
class Bar:
    """`group` decides the colour."""

    label: str
    value: float
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """Bars on a scale of their own."""

    unit: str
    values: Sequence[Bar]


def bars(title: str, unit: str, values: Sequence[Bar]) -> str:
    """One picture; the longest bar fills the width."""
    heading = f"{title} ({unit})"
    return _picture(heading, [_rows(values, _HEAD, _LABELS)], _HEAD + len(values) * (_BAR + _GAP))


def panels(title: str, drawn: Sequence[Panel]) -> str:
    """Several of them under each other, with room for the longest label."""
    labels = 24 + 7 * max((len(bar.label) for panel in drawn for bar in panel.values), default=0)
    height, parts = _HEAD, []
    for panel in drawn:
        parts.append([_text(_EDGE, height + 16, panel.unit, 'font-weight="bold"')])
        height += _CAPTION
        parts.append(_rows(panel.values, height, min(labels, _LABELS)))
        height += len(panel.values) * (_BAR + _GAP) + _GAP
    return _picture(title, parts, height)


def number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _picture(heading: str, parts: Sequence[Sequence[str]], height: int) -> str:
    height += _EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_EDGE, 26, heading, 'font-size="16"'),
        *(line for part in parts for line in part),
    ]
    return "\n".join([*lines, "</svg>", ""])


def _rows(values: Sequence[Bar], top: int, labels: int) -> list[str]:
    groups = list(dict.fromkeys(bar.group for bar in values))
    longest = max((bar.value for bar in values), default=0.0) or 1.0
    lines = []
    for place, bar in enumerate(values):
        above = top + place * (_BAR + _GAP)
        width = (_WIDTH - labels - 80) * bar.value / longest
        colour = _COLOURS[groups.index(bar.group) % len(_COLOURS)]
        lines += [
            _text(labels - 8, above + 15, bar.label, 'text-anchor="end"'),
            f'<rect x="{labels}" y="{above}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            _text(round(labels + width + 6, 1), above + 15, number(bar.value)),
        ]
    return lines


def _text(left: float, base: float, text: str, style: str = "") -> str:
    return f'<text x="{left:g}" y="{base:g}" fill="#1d2329"{style and " " + style}>{escape(text)}</text>'
