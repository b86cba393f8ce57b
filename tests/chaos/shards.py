"""Results of faults on disk, and the figures that come of them.

1. The file of a shard holds one kind, and is complete after every fault: a run that is cut off goes on where it was.
2. Merged are all files of a folder. A fault is known by kind, seed and number; told twice it counts once.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec

from tests.chaos.faults import KINDS
from tests.chaos.reference import DEMO
from tests.figures import DOCS, Figure, quantile, write

if TYPE_CHECKING:
    from pathlib import Path


FLIPS_PER = 50_000
"""Tokens, of which one may be flipped."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. `wrong`: what was not as it must be. Times in seconds.

    `gaps`: the longest pause of each stream that ran when it happened. `late`: by how much each answer in one piece that needed
    another node came later than without. `differing`: answers that are not the undisturbed run's; `flipped`: those that part from
    it within the margin in which the engine may differ from itself, which are not wrong.
    """

    kind: str
    seed: int
    number: int
    requests: int
    tokens: int
    failed: int
    differing: int
    gaps: list[float]
    late: list[float]
    wrong: list[str]
    seconds: float
    flipped: int = 0

    @property
    def gap(self) -> float:
        """The worst that any client saw of this fault."""
        return max(self.gaps, default=0.0)


class Shard:
    """The faults of one kind that one run is to do: of `faults` every one whose number fits."""

    def __init__(self, folder: Path, kind: str, *, seed: int, faults: int, part: int = 1, parts: int = 1) -> None:
        self.kind = kind
        self.seed = seed
        self.numbers = range(part - 1, faults, parts)
        self._file = folder / f"{kind}-{seed}-{part}-of-{parts}.json"
        self.results = load(self._file) if self._file.exists() else []

    @property
    def left(self) -> list[int]:
        done = {result.number for result in self.results}
        return [number for number in self.numbers if number not in done]

    def add(self, result: Result) -> None:
        self.results.append(result)
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self.results) + b"\n")
        os.replace(fresh, self._file)


def load(file: Path) -> list[Result]:
    return msgspec.json.decode(file.read_bytes(), type=list[Result])


def merged(folder: Path) -> list[Result]:
    """All results of a folder, each once."""
    results = {(one.kind, one.seed, one.number): one for file in sorted(folder.glob("*.json")) for one in load(file)}
    return [results[key] for key in sorted(results)]


def figures(results: list[Result]) -> list[Figure]:
    """The gap that clients see, by kind; what failed, over all kinds."""
    found: list[Figure] = []
    for kind, about in KINDS.items():
        ours = [result for result in results if result.kind == kind]
        if ours:
            found += _gaps(kind, about.target, ours)
    totals = {
        "faults": len(results),
        "requests": sum(one.requests for one in results),
        "tokens": sum(one.tokens for one in results),
    }
    found += [Figure(f"all kinds: {name}", count, "") for name, count in totals.items()]
    found += flips("all kinds", sum(one.flipped for one in results), sum(one.tokens for one in results if _engine(one)))
    return [
        *found,
        Figure("all kinds: requests that did not end exactly once, with `done`", sum(one.failed for one in results), "", 0),
        Figure("all kinds: answers that differ from the undisturbed run", sum(one.differing for one in results), "", 0),
        Figure("all kinds: faults after which something else was not as it must be", sum(map(_is_odd, results)), "", 0),
    ]


def flips(what: str, flipped: int, tokens: int) -> list[Figure]:
    """What is told of answers that part from the undisturbed run within the margin; `tokens`: those of the engine."""
    if not tokens:
        return []
    name = f"{what}: answers that part from the undisturbed run within the margin of 1e-4, per {FLIPS_PER} tokens of the engine"
    return [Figure(name, flipped * FLIPS_PER / tokens, "", 1)]


def _engine(result: Result) -> bool:
    return KINDS[result.kind].model == DEMO


def _is_odd(result: Result) -> bool:
    return len(result.wrong) > result.failed + result.differing


def _gaps(kind: str, target: float | None, results: list[Result]) -> list[Figure]:
    """Of each fault counts the client that it hit worst."""
    worst = [result.gap for result in results]
    late = [seconds for result in results for seconds in result.late]
    rows = [
        Figure(f"{kind}: longest pause that a client saw, p50 of {len(worst)} faults", quantile(worst, 0.5), "s"),
        Figure(f"{kind}: the same, p95", quantile(worst, 0.95), "s", target),
        Figure(f"{kind}: the same, worst", max(worst), "s"),
    ]
    if late:
        rows.append(Figure(f"{kind}: answers in one piece come later by, p95 of {len(late)}", quantile(late, 0.95), "s", target))
    return rows


def publish(results: list[Result], *, docs: Path = DOCS) -> list[Figure]:
    """Write table and raw numbers. Returns the figures."""
    found = figures(results)
    write(found, mark="chaos", file="chaos.json", docs=docs)
    told: dict[str, Any] = json.loads((docs / "chaos.json").read_text())
    told["faults"] = [msgspec.to_builtins(one) for one in results]
    (docs / "chaos.json").write_text(json.dumps(told, indent=1) + "\n")
    return found
