"""What a multiplexer counts, and the page that a Prometheus server reads. Nothing in it grows with time."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Seconds."""
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Seconds, by BOUNDS."""

    def __init__(self) -> None:
        self.total = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)

    @property
    def count(self) -> int:
        return sum(self._counts)

    def saw(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        """In Prometheus' text format, cumulative."""
        below = 0
        for bound, count in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), self._counts, strict=True):
            below += count
            yield sample(f"{name}_bucket", (*labels, ("le", bound)), below)
        yield sample(f"{name}_sum", labels, self.total)
        yield sample(f"{name}_count", labels, below)


class Meter:
    """See the head of this file."""

    def __init__(self) -> None:
        self.switches: Counter[tuple[str, str, str]] = Counter()
        """By from, to and result."""
        self.switching = Histogram()
        self.waits: dict[str, Histogram] = {}
        self.hooks: dict[tuple[str, str], Histogram] = {}
        self.hook_failures: Counter[tuple[str, str]] = Counter()
        """Both by model and hook."""

    def switched(self, previous: str | None, model: str, result: str, seconds: float) -> None:
        """A switch has ended, well or not."""
        self.switches[previous or "", model, result] += 1
        self.switching.saw(seconds)

    def waited(self, model: str, seconds: float) -> None:
        """A request got its turn."""
        self.waits.setdefault(model, Histogram()).saw(seconds)

    def hooked(self, model: str, hook: str, seconds: float, *, failed: bool) -> None:
        """A wake, sleep or alive has ended."""
        self.hooks.setdefault((model, hook), Histogram()).saw(seconds)
        self.hook_failures[model, hook] += failed

    def page(
        self, *, costs: Mapping[tuple[str | None, str], float], depths: Mapping[str, int], running: Mapping[str, int]
    ) -> str:
        """The whole page; `costs` in seconds by pair, `depths` and `running` in requests by model."""
        return "".join(f"{line}\n" for line in self._lines(costs, depths, running))

    def _lines(
        self, costs: Mapping[tuple[str | None, str], float], depths: Mapping[str, int], running: Mapping[str, int]
    ) -> Iterator[str]:
        yield from _family(
            "switch_total",
            "counter",
            (((*_pair(one, other), ("result", result)), count) for (one, other, result), count in self.switches.items()),
        )
        yield "# TYPE infermesh_switch_duration_seconds histogram"
        yield from self.switching.lines("infermesh_switch_duration_seconds", ())
        yield from _family(
            "switch_cost_ema_seconds", "gauge", ((_pair(one or "", other), seconds) for (one, other), seconds in costs.items())
        )
        yield from _family("request_queue_depth", "gauge", ((_model(model), depth) for model, depth in depths.items()))
        yield "# TYPE infermesh_request_queue_wait_seconds histogram"
        for model, waits in self.waits.items():
            yield from waits.lines("infermesh_request_queue_wait_seconds", _model(model))
        yield from _family("model_in_flight", "gauge", ((_model(model), count) for model, count in running.items()))
        yield "# TYPE infermesh_hook_duration_seconds histogram"
        for (model, hook), durations in self.hooks.items():
            yield from durations.lines("infermesh_hook_duration_seconds", _hook(model, hook))
        yield from _family(
            "hook_failures_total", "counter", ((_hook(model, hook), count) for (model, hook), count in self.hook_failures.items())
        )


def _family(name: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# TYPE infermesh_{name} {kind}"
    for labels, value in samples:
        yield sample(f"infermesh_{name}", labels, value)


def _model(model: str) -> Labels:
    return (("model", model),)


def _hook(model: str, hook: str) -> Labels:
    return (("model", model), ("hook", hook))


def _pair(one: str, other: str) -> Labels:
    return (("from", one), ("to", other))


def sample(name: str, labels: Labels, value: float) -> str:
    """One line of Prometheus' text format."""
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
