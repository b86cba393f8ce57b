"""What a measurement says, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Figure:
    """One measured thing. `target` is in the same unit; None = only told."""

    name: str
    value: float
    unit: str
    target: float | None = None

    @property
    def met(self) -> bool:
        return self.target is None or self.value <= self.target


def table(figures: list[Figure]) -> str:
    rows = ["| what | measured | target |", "| --- | --- | --- |"]
    for figure in figures:
        target = "" if figure.target is None else f"<= {figure.target:g} {figure.unit}"
        rows.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {target} |")
    return "\n".join(rows)
