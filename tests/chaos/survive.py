"""Two thousand requests while one of three nodes is killed every 15 seconds and started again: nobody notices.

The engine is the real one, in fp32: two nodes may differ where two tokens are equally likely within 1e-4, which is counted.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tests.chaos.stage import DEMO, Plan, Seat, Stage, made_stage
from tests.chaos.traffic import Answer, ask, make_body
from tests.figures import Figure, quantile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY = 15.0
AT_ONCE = 12
TOKENS = 64
TELL_EVERY = 100
FLIPS_PER = 50_000
"""Tokens, of which one may differ."""


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
        faults = await stage.reference.faults(answers)
    return figures(answers, faults, killing)


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


def figures(answers: list[Answer], faults: list[str], killing: Killing) -> list[Figure]:
    """`faults` as `Reference.faults` gives them."""
    failed = sum(answer.ends != ["done"] for answer in answers)
    differing = sum(map(bool, faults)) - failed
    tokens = sum(answer.tokens for answer in answers)
    for fault in sorted({fault for fault in faults if fault}):
        print(fault)
    gaps = pauses(answers, killing)
    rows = [
        Figure(f"a node killed every {killing.every:g} s: requests that failed, of {len(answers)}", failed, "", 0),
        Figure(
            f"the same: answers that differ from the undisturbed run, per {FLIPS_PER} tokens",
            differing * FLIPS_PER / max(tokens, 1),
            "",
            1,
        ),
        Figure("the same: answers that differ", differing, ""),
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
