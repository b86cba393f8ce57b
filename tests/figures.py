"""Measured figures: their targets, and how they get into docs/benchmarks.md and a JSON file beside it."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


@dataclass
class Figure:
    """One measured thing. `target` is the most, `floor` the least that it should be, in the same unit; None = only told."""

    name: str
    value: float
    unit: str
    target: float | None = None
    floor: float | None = None

    @property
    def met(self) -> bool:
        return (self.target is None or self.value <= self.target) and (self.floor is None or self.value >= self.floor)

    @property
    def wanted(self) -> str:
        bounds = (("<=", self.target), (">=", self.floor))
        return " ".join(f"{sign} {bound:g} {self.unit}".rstrip() for sign, bound in bounds if bound is not None)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def table(figures: list[Figure]) -> str:
    rows = ["| what | measured | target |", "| --- | --- | --- |"]
    for figure in figures:
        rows.append(f"| {figure.name} | {f'{figure.value:.3g} {figure.unit}'.rstrip()} | {figure.wanted} |")
    return "\n".join(rows)


def write(figures: list[Figure], *, mark: str, file: str, before: str = "", docs: Path = DOCS) -> None:
    """Put figures behind their mark, `<!-- MARK -->`, in benchmarks.md, up to the next mark, and write all of them as JSON.

    `before`: what else stands there, in Markdown.
    """
    machine = {"python": platform.python_version(), "system": platform.system(), "processor": platform.machine()}
    raw = {"machine": machine, "figures": [{**vars(figure), "met": figure.met} for figure in figures]}
    (docs / file).write_text(json.dumps(raw, indent=1) + "\n")
    page = docs / "benchmarks.md"
    page.write_text(replaced(page.read_text(), f"<!-- {mark} -->", f"{before}\n\n{table(figures)}".lstrip()))


def replaced(page: str, mark: str, text: str) -> str:
    """A page with `text` between a mark and the next one; a mark that is not there yet is put at the end."""
    before, _, after = page.partition(mark)
    _, next_mark, rest = after.partition("<!-- ")
    ending = f"\n{next_mark}{rest}" if next_mark else ""
    return f"{before.rstrip()}\n\n{mark}\n\n{text}\n{ending}"


def report(figures: list[Figure]) -> int:
    """Print the table and what was missed. The exit code."""
    print(table(figures))
    missed = [figure.name for figure in figures if not figure.met]
    print(*(f"missed: {name}" for name in missed), sep="\n")
    return 1 if missed else 0
