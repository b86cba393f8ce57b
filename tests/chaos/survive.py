"""Two thousand requests while one of three nodes is killed every 15 seconds and started again: nobody notices.

The engine is the real one, in fp32: two nodes may differ where two tokens are equal within 1e-4, which is counted; see `flips`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tests.chaos.reference import DEMO
from tests.chaos.shards import flips
from tests.chaos.stage import Plan, Seat, Stage, made_stage
from tests.chaos.traffic import Answer, ask, make_body
from tests.figures import DOCS, Figure, quantile, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.reference import Verdict

EVERY = 15.0
AT_ONCE = 12
TOKENS = 64
TELL_EVERY = 100
REQUESTS = 2000
"""What fewer of show is not written down."""


@dataclass
class Killing:
    """Who was killed, and when: (time, peer id). `every`: seconds between two deaths."""

    every: float
    deaths: list[tuple[float, str]] = field(default_factory=list)

    async def run(self, stage: Stage, source: random.Random) -> None:
        """For ever. One node at a time: the next one has to wait until the last one is back."""
        due = time.perf_counter()
        while True:
            due = max(due + self.every, time.perf_counter())
            await trio.sleep(max(0.0, due - time.perf_counter()))
            await stage.whole()
            victim: Seat = source.choice(stage.nodes)
            self.deaths.append((time.perf_counter(), victim.peer_id))
            victim.kill()
            await victim.restart()


async def survive(logs: Path, seed: int, requests: int, *, model: str = DEMO, every: float = EVERY) -> list[Figure]:
    """Run it; the figures."""
    source = random.Random(f"survive {seed}")
    answers = [Answer(make_body(source, number, model, TOKENS, natural_end=number % 3 > 0)) for number in range(requests)]
    killing = Killing(every)
    async with made_stage(Plan(model=model, nodes=3), logs) as stage:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(killing.run, stage, source)
            await ask_all(stage, answers)
            nursery.cancel_scope.cancel()
        print("all have ended; now the undisturbed run of each", flush=True)
        verdicts = await stage.reference.verdicts(answers)
    return figures(answers, verdicts, killing)


def publish(found: list[Figure], *, docs: Path = DOCS) -> None:
    """Write table and raw numbers."""
    write(found, mark="chaos survive", file="chaos-survive.json", docs=docs)


async def ask_all(stage: Stage, answers: list[Answer]) -> None:
    """So many at once, each client one after another."""
    waiting: Iterator[tuple[int, Answer]] = iter(enumerate(answers, 1))

    async def client() -> None:
        for number, answer in waiting:
            await ask(stage.http, stage.url, answer)
            if number % TELL_EVERY == 0:
                print(f"{number} requests", flush=True)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(client)


def figures(answers: list[Answer], verdicts: list[Verdict], killing: Killing) -> list[Figure]:
    """`verdicts`: one for each answer."""
    failed = sum(answer.ends != ["done"] for answer in answers)
    differing = sum(verdict.wrong for verdict in verdicts) - failed
    flipped = sum(verdict.flipped for verdict in verdicts)
    tokens = sum(answer.tokens for answer in answers)
    for fault in sorted({f"{verdict.fault}{' (flipped)' * verdict.flipped}" for verdict in verdicts if verdict.fault}):
        print(fault)
    gaps = pauses(answers, killing)
    rows = [
        Figure(f"a node killed every {killing.every:g} s: requests that failed, of {len(answers)}", failed, "", 0),
        Figure("the same: answers that differ from the undisturbed run", differing, "", 0),
        *flips("the same", flipped, tokens),
        Figure("the same: such answers", flipped, ""),
        Figure("the same: tokens", tokens, ""),
        Figure("the same: nodes killed", len(killing.deaths), ""),
        Figure("the same: streams that went over to another node", len(gaps), ""),
    ]
    if gaps:
        rows += [
            Figure("the same: longest pause of such a stream, p50", quantile(gaps, 0.5), "s"),
            Figure("the same: longest pause of such a stream, p95", quantile(gaps, 0.95), "s", 1.0),
            Figure("the same: longest pause of such a stream, worst", max(gaps), "s"),
        ]
    return rows


def pauses(answers: list[Answer], killing: Killing) -> list[float]:
    """Of every stream whose node was killed after its first text and before its last."""
    return [
        answer.gap_after(moment)
        for moment, peer_id in killing.deaths
        for answer in answers
        if answer.pieces and answer.node == peer_id and answer.pieces[0] < moment < answer.pieces[-1]
    ]
