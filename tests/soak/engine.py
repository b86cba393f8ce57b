"""`python -m tests.soak.engine --requests 20000`: one engine, whatever clients may do to it, and its memory.

Every request must end in exactly one terminal event, a cancelled one at most two steps after the engine heard of it, and the
process must not grow. Faults are among it: steps that break, and steps that run out of memory. Prints what happened as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from rich.progress import track

from mesh.messages.inference import Accepted, Delta, Done, Event, Fail, InferenceRequest
from node.worker.engine import Engine, Limits
from node.worker.loader import Options, load
from tests.node.worker.tiny import make_tokenizer, save_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

IN_FLIGHT = 40
GROWTH = 1.1
"""By how much the resident memory may grow between the second and the last quarter."""
SAMPLES = 200
POISON = 449
"""A token that the tokenizer never makes: steps with it in a prompt break."""


@dataclass
class Report:
    """What happened. `faults`: sentences about what must not happen."""

    requests: int
    steps: int = 0
    seconds: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    broken_steps: int = 0
    hit_rate: float = 0.0
    rss_mib: list[float] = field(default_factory=list)
    growth: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Live:
    """A request under way. `patience`: steps in which it must have ended, once it was cancelled."""

    events: list[Event] = field(default_factory=list)
    patience: int | None = None


class Faults:
    """Breaks steps that hold the poison, and now and then any step for want of memory."""

    def __init__(self, engine: Engine, source: random.Random) -> None:
        self._run = engine._runner.run
        self._source = source
        engine._runner.run = self.run  # type: ignore[method-assign]

    def run(self, shares: Sequence[Any]) -> torch.Tensor:
        if any(POISON in share.sequence.tokens for share in shares):
            raise RuntimeError("poisoned")
        if self._source.random() < 0.002:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
        return self._run(shares)


class Clients:
    """Random requests, good and bad, that share the beginnings of their prompts."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._beginnings = [self._ids(source.randrange(20, 200)) for _ in range(12)]

    def request(self, number: int) -> InferenceRequest:
        source = self._source
        fields: dict[str, Any] = {
            "max_tokens": source.choice((1, 5, 20, 20, 60, 100, None)) if source.random() < 0.9 else source.randrange(-1, 2),
            "temperature": source.choice((0.0, 0.7, 1.0, 2.0)),
            "top_p": source.choice((1.0, 0.9, 0.2)),
            "top_k": source.choice((0, 0, 5, 300)),
            "seed": source.randrange(1000),
            "stop": source.choice(([], [], ["e"], ["the", "a "], ["\n"])),
            "tenant": source.choice("aaab"),
            "priority": source.choice((0, 0, 0, 1, -1)),
        }
        fields |= self._prompt()
        if source.random() < 0.15:
            fields |= self._mischief()
        return InferenceRequest(request_id=f"r{number}", model="m", **fields)

    def _prompt(self) -> dict[str, Any]:
        source = self._source
        kind = source.random()
        if kind < 0.6:
            beginning = source.choice(self._beginnings) if source.random() < 0.7 else []
            return {"task": "completion", "prompt": [*beginning, *self._ids(source.randrange(1, 40))]}
        if kind < 0.75:
            return {"task": "completion", "prompt": source.choice(("A mesh", "Grüße 🙂", "你好", " ", "x" * 300))}
        return {
            "task": "chat",
            "messages": [{"role": "user", "content": source.choice(("Hi", "Who? 👩‍💻", ""))}] * source.randrange(1, 4),
        }

    def _mischief(self) -> dict[str, Any]:
        source = self._source
        return source.choice(
            (
                {"temperature": -1.0},
                {"temperature": float("nan")},
                {"top_p": 0.0},
                {"top_k": -5},
                {"stop": [""]},
                {"deadline_ms": source.choice((0, 1, 30))},
                {"max_length": source.randrange(1, 60)},
                {"prior": [self._ids(source.randrange(8))]},
                {"prior": [[10**9]]},
                {"prior": [[5], [6]]},
                {"task": "completion", "prompt": ""},
                {"task": "completion", "prompt": [5, 10**6]},
                {"task": "completion", "prompt": self._ids(600)},
                {"task": "completion", "prompt": [5, POISON, 6]},
                {"task": "chat", "messages": []},
                {"task": "chat", "messages": [{"role": "wizard", "content": "x"}]},
                {"task": "embedding", "inputs": ["x"]},
            )
        )

    def _ids(self, count: int) -> list[int]:
        return [self._source.randrange(3, 400) for _ in range(count)]


class Soak:
    """One run. `seed` decides everything but the timing."""

    def __init__(self, engine: Engine, requests: int, seed: int) -> None:
        self.report = Report(requests)
        self._engine = engine
        self._source = random.Random(seed)
        self._clients = Clients(self._source)
        self._faults = Faults(engine, random.Random(seed + 1))
        self._live: dict[int, Live] = {}
        self._ends: Counter[str] = Counter()
        self._process = psutil.Process()

    def run(self, numbers: Iterable[int]) -> Report:
        begun = time.monotonic()
        every = max(1, self.report.requests // SAMPLES)
        for number in numbers:
            self._submit(number)
            # Now and then a burst, which is more than the queue takes.
            most = IN_FLIGHT if number // 50 % 5 else 3 * IN_FLIGHT
            while len(self._live) >= most:
                self._step()
            if number % every == 0:
                self.report.rss_mib.append(round(self._process.memory_info().rss / 2**20, 1))
        for _ in range(100_000):
            if self._engine.idle:
                break
            self._step()
        self._conclude(time.monotonic() - begun)
        return self.report

    def _submit(self, number: int) -> None:
        self._live[number] = Live()
        self._engine.submit(number, self._clients.request(number))

    def _step(self) -> None:
        for number in [number for number in self._live if self._source.random() < 0.002]:
            self._engine.abort(number)
            self._live[number].patience = 2
        step = self._engine.step()
        for number, event in step.events if step else ():
            self._hear(number, event)
        for number, live in self._live.items():
            if live.patience is not None:
                live.patience -= 1
                if live.patience == 0:
                    self._fault(f"request {number} was cancelled two steps ago and has not ended")

    def _hear(self, number: int, event: Event) -> None:
        if number not in self._live:
            self._fault(f"request {number} got {event} after its end")
            return
        live = self._live[number]
        live.events.append(event)
        if isinstance(event, Done | Fail):
            del self._live[number]
            self._ends[event.finish_reason if isinstance(event, Done) else event.code] += 1
            self._check(number, live.events)

    def _check(self, number: int, events: list[Event]) -> None:
        if any(isinstance(event, Accepted) for event in events[1:]):
            self._fault(f"request {number} was accepted late or twice")
        deltas = [event for event in events if isinstance(event, Delta)]
        offsets = [delta.offset for delta in deltas]
        if offsets and offsets != list(range(offsets[0], offsets[0] + len(offsets))):
            self._fault(f"request {number} has a gap: {offsets}")

    def _conclude(self, seconds: float) -> None:
        report, stats = self.report, self._engine.stats
        if self._live or not self._engine.idle:
            self._fault(f"{len(self._live)} requests never ended")
        if sum(self._ends.values()) != report.requests:
            self._fault(f"{report.requests} requests and {sum(self._ends.values())} ends")
        if stats.cache.protected_size:
            self._fault(f"{stats.cache.protected_size} tokens of the prefix cache are still held")
        report.steps, report.seconds = self._engine.load.step, round(seconds, 1)
        report.ends = dict(self._ends.most_common())
        report.preemptions, report.broken_steps = stats.preemptions, stats.broken_steps
        report.hit_rate = round(stats.cache.hit_rate, 3)
        quarter = len(report.rss_mib) // 4
        early, late = report.rss_mib[quarter : 2 * quarter], report.rss_mib[-quarter:]
        if quarter:
            report.growth = round(statistics.median(late) / statistics.median(early), 4)

    def _fault(self, sentence: str) -> None:
        if len(self.report.faults) < 20:
            self.report.faults.append(sentence)


def small_engine(folder: Path) -> Engine:
    """A tiny model, with so little cache that requests are preempted and prefixes evicted."""
    save_model(folder, "llama", make_tokenizer())
    options = Options(
        path=folder, device="cpu", dtype="float32", slots=12, cache_mib=2, limits=Limits(budget=128, queue=IN_FLIGHT)
    )
    return load(options, lambda _: None)[0]


def main() -> None:
    """Run, print the report, exit 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="tests.soak.engine", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(small_engine(Path(folder)), options.requests, options.seed)
    report = soak.run(track(range(options.requests), description="requests"))
    if report.growth > GROWTH:
        report.faults.append(f"the resident memory grew by a factor of {report.growth}")
    print(json.dumps(asdict(report) | {"rss_mib": report.rss_mib[:: max(1, len(report.rss_mib) // 10)]}, indent=2))
    raise SystemExit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
