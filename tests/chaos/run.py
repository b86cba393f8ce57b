"""Faults one after another on one stage, each with requests under way, every answer compared with the undisturbed run."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.chaos.faults import KINDS, Kind, Scene, clock_environment
from tests.chaos.shards import Result, Shard
from tests.chaos.sockets import ask_socket, socket_body
from tests.chaos.stage import MOCK, MOCK_RATE, Plan, Seat, Stage, made_stage
from tests.chaos.traffic import Answer, ask, make_body
from tests.fleet import NotReady, tail
from tests.network.namespaces import Network

if TYPE_CHECKING:
    from pathlib import Path

REQUESTS = 8
COUNTED = 5.0
"""Seconds; engines tell their counters every second."""
MAX_STAGES = 3
"""Of one kind: a mesh that does not become whole again is given up, and another one made."""


class Broken(Exception):
    """The mesh did not become whole again after a fault."""


async def run_shard(shard: Shard, logs: Path) -> None:
    """Do what is left of a shard, as far as it goes. Raises NotPermitted and RuntimeError where this machine cannot do it."""
    for attempt in range(MAX_STAGES):
        if not shard.left:
            return
        try:
            await _run_on_stage(shard, logs / f"{shard.kind}-{attempt}")
        except* (Broken, NotReady, trio.TooSlowError) as broken:
            print(f"{shard.kind}: {broken.exceptions[0]!r}; see {logs}", flush=True)


async def _run_on_stage(shard: Shard, logs: Path) -> None:
    kind = KINDS[shard.kind]
    async with made_stage(plan_for(kind, logs), logs) as stage:
        for number in shard.left:
            shard.add(await one_fault(stage, shard, number))
            told(shard)
            try:
                await stage.whole()
            except (trio.TooSlowError, NotReady) as error:
                raise Broken(f"not whole again after fault {number}") from error


def plan_for(kind: Kind, logs: Path) -> Plan:
    logs.mkdir(parents=True, exist_ok=True)
    return Plan(
        model=kind.model,
        nodes=3 if kind.model == MOCK else 2,
        gateways=2 if kind.sockets else 1,
        network=Network(logs, multicast=False) if kind.network else None,
        flood=kind.flood,
        env=clock_environment(logs) if kind.clock else None,
    )


async def one_fault(stage: Stage, shard: Shard, number: int) -> Result:
    """Requests, a fault in the middle of them, and what became of them."""
    kind = KINDS[shard.kind]
    source = random.Random(f"{shard.kind} {shard.seed} {number}")
    answers = [Answer(make_body(source, number * REQUESTS + n, kind.model, kind.tokens)) for n in range(REQUESTS)]
    started = time.perf_counter()
    before = await stage.generated() if kind.sockets else 0
    async with trio.open_nursery() as clients:
        streams = await begin(clients, stage, kind, source, answers)
        await trio.sleep(source.uniform(0, 0.3))
        scene = Scene(stage, victim_of(stage, streams), source, [], [])
        peer_id, moment = scene.victim.peer_id, time.perf_counter()
        async with kind.fault(scene):
            for answer in answers:
                await ended(answer)
            if kind.sockets:
                scene.notes += await made_once(stage, before, answers)
    return await judged(stage, shard, number, answers, scene, peer_id, moment, started)


async def begin(clients: trio.Nursery, stage: Stage, kind: Kind, source: random.Random, answers: list[Answer]) -> list[Answer]:
    """Let everybody ask; the streams, once all of them have begun."""
    others = [gateway.program.url for gateway in stage.gateways[1:]]
    for answer in answers:
        if kind.sockets and not answer.streamed:
            # These may end by themselves, so they come last.
            continue
        clients.start_soon(partial(ask, stage.http, stage.url, answer, others=others))
    for answer in answers:
        if answer.streamed:
            await answer.begun.wait()
        elif kind.sockets:
            answer.body = socket_body(source, answer.body)
            clients.start_soon(partial(ask_socket, stage.url, answer, others=others))
    streams = [answer for answer in answers if answer.streamed]
    for answer in streams:
        await answer.begun.wait()
    return streams


async def made_once(stage: Stage, before: int, answers: list[Answer]) -> list[str]:
    """Whether streams were picked up, and the engines made as many tokens as the clients got: what is wrong with it."""
    wanted = sum(answer.tokens for answer in answers)
    made = 0
    with trio.move_on_after(COUNTED):
        while made != wanted:
            await trio.sleep(0.1)
            made = await stage.generated() - before
    faults = [] if made == wanted else [f"{made} tokens were generated for {wanted}"]
    return faults if any(answer.lost for answer in answers) else [*faults, "no stream lost its gateway"]


def victim_of(stage: Stage, streams: list[Answer]) -> Seat:
    """The node of the first stream that runs."""
    nodes = [answer.node for answer in streams if not answer.ends]
    return stage.node(nodes[0]) if nodes else stage.nodes[0]


async def ended(answer: Answer) -> None:
    while not answer.ended:  # noqa: ASYNC110 - its end is a time, and whoever asks has a limit
        await trio.sleep(0.01)


async def judged(
    stage: Stage, shard: Shard, number: int, answers: list[Answer], scene: Scene, peer_id: str, moment: float, started: float
) -> Result:
    kind = KINDS[shard.kind]
    hit = [answer for answer in answers if answer.streamed and (answer.node == peer_id or not kind.local)]
    everyone = [*answers, *scene.more]
    verdicts = await stage.reference.verdicts(everyone)
    wrong = [
        f"{'stream' if answer.streamed else 'answer'}: {verdict.fault}"
        for answer, verdict in zip(everyone, verdicts, strict=True)
        if verdict.wrong
    ]
    failed = sum(answer.ends != ["done"] for answer in everyone)
    return Result(
        kind=shard.kind,
        seed=shard.seed,
        number=number,
        requests=len(everyone),
        tokens=sum(answer.tokens for answer in everyone),
        failed=failed,
        differing=len(wrong) - failed,
        flipped=sum(verdict.flipped for verdict in verdicts),
        gaps=[round(answer.gap_after(moment), 4) for answer in hit],
        late=[round(late, 4) for late in lateness(kind, answers, peer_id, moment)],
        wrong=[*wrong, *scene.notes],
        seconds=round(time.perf_counter() - started, 2),
    )


def lateness(kind: Kind, answers: list[Answer], victim: str, moment: float) -> list[float]:
    """By how much answers in one piece that a lost node was at took longer than their words take; known of the mock alone."""
    if kind.model != MOCK or not kind.local:
        return []
    hit = [answer for answer in answers if not answer.streamed and answer.node == victim and answer.ended > moment]
    return [answer.ended - answer.sent - answer.tokens / MOCK_RATE for answer in hit]


def told(shard: Shard) -> None:
    """One line about the last fault."""
    result = shard.results[-1]
    done, of = len(shard.numbers) - len(shard.left), len(shard.numbers)
    state = "; ".join(result.wrong) or ("right" if not result.flipped else f"right, but for {result.flipped} flipped")
    seen = f"{result.requests} requests, longest pause {result.gap:.3f} s, {result.seconds:.1f} s"
    print(f"{shard.kind} {done}/{of}: {seen}: {state}", flush=True)


def show_logs(logs: Path) -> None:
    """The end of every log below a folder."""
    for log in sorted(logs.rglob("*.log")):
        print(f"--- {log.relative_to(logs)}\n{tail(log, 6)}", flush=True)
