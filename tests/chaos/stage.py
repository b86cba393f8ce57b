"""A mesh to be disturbed: a bootstrap peer, gateways, nodes, and a node outside of it that says what the right answers are.

1. Who dies is started again as the same peer: a seat keeps the state folder, and the address that others were told.
2. A stage is whole when every gateway has a link to every node and every model is ready.
"""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import trio

from tests.chaos.traffic import Answer, Truth, ask
from tests.fleet import Fleet, Program, until
from tests.network.namespaces import Host, Network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

DEMO = "infermesh-demo"
MOCK = "mock-model"
FLOOD = "flood-model"
MOCK_RATE = 100
FLOOD_RATE = 6000
"""Words per second of each request at a mock."""
WHOLE_LIMIT = START_LIMIT = 180.0
"""Seconds; hang guards: two busy cores load torch in about ten, and four times at once in a minute."""
_AT_ONCE = 16


class Seat:
    """Where one program runs, and is started again after it died. `program` is the present one."""

    def __init__(self, fleet: Fleet, name: str, role: str, *args: str, env: dict[str, str] | None = None) -> None:
        self.fleet = fleet
        self.name = name
        self._role = role
        self._args = [*args, "--no-mdns", "--state-dir", str(fleet.logs / name)]
        self._env = env
        self.program: Program

    async def start(self) -> Seat:
        self.program = await self.fleet.ready(self.fleet.spawn(self._role, *self._args, env=self._env), START_LIMIT)
        return self

    async def restart(self) -> None:
        """Start it again, where the others expect it."""
        port = self.address.split("/")[4]
        if self._role == "bootstrap" and "--listen" not in self._args:
            host = self.fleet.ipv4 if isinstance(self.fleet, Host) else "127.0.0.1"
            self._args += ["--listen", f"/ip4/{host}/tcp/{port}"]
        await self.start()

    def kill(self) -> None:
        self.program.kill()

    @property
    def pid(self) -> int:
        return self.program.process.pid

    @property
    def peer_id(self) -> str:
        return str(self.program.ready["peer_id"])

    @property
    def address(self) -> str:
        return self.fleet.address_of(self.program) if isinstance(self.fleet, Host) else self.program.address


@dataclass(frozen=True)
class Plan:
    """What a stage is made of. `far`: every node is a machine of its own in `network`."""

    model: str = MOCK
    nodes: int = 3
    gateways: int = 1
    network: Network | None = None
    flood: bool = False
    env: dict[str, str] | None = None


@dataclass
class Stage:
    """See the head of this file."""

    plan: Plan
    http: httpx2.AsyncClient
    bootstrap: Seat
    gateways: list[Seat]
    nodes: list[Seat]
    reference: Reference
    patient: httpx2.AsyncClient = field(repr=False)
    """For clients that read slowly: small buffers."""

    @property
    def url(self) -> str:
        return self.gateways[0].program.url

    @property
    def seats(self) -> list[Seat]:
        return [self.bootstrap, *self.gateways, *self.nodes]

    def node(self, peer_id: str) -> Seat:
        return next(seat for seat in self.nodes if seat.peer_id == peer_id)

    async def models(self, gateway: Seat) -> list[tuple[str, dict[str, Any]]]:
        """Peer id and state of every model that a gateway may route to."""
        try:
            answer = await self.http.get(f"{gateway.program.url}/v1/mesh/peers")
        except httpx2.HTTPError:
            return []
        return [(peer["peer_id"], model) for peer in answer.json()["peers"] if peer["linked"] for model in peer["models"]]

    async def whole(self) -> None:
        """Wait until everything is there. Raises trio.TooSlowError."""
        wanted = {seat.peer_id for seat in self.nodes}

        async def complete() -> bool:
            for gateway in self.gateways:
                ready = {peer for peer, model in await self.models(gateway) if model["state"] == "ready"}
                if not wanted <= ready:
                    return False
            return True

        await until(complete, limit=WHOLE_LIMIT)

    async def generated(self) -> int:
        """Tokens that the engines of all nodes have made so far, as they said last; the mock does not count."""
        told = [(await self.http.get(f"{seat.program.url}/info")).json() for seat in self.nodes]
        metrics = [model["metrics"] for info in told for model in info["models"]]
        # None: that engine has said nothing yet, so made nothing.
        return sum(one["engine"]["total_tokens_generated"] for one in metrics if one is not None)


class Reference:
    """A node that nothing happens to. Asked on its own port, so without a gateway; what was asked once is remembered."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url
        self._known: dict[str, Truth] = {}
        self._places = trio.CapacityLimiter(_AT_ONCE)

    async def truth(self, answer: Answer) -> Truth:
        """The undisturbed run of the same request with the same seed. Raises RuntimeError when there is none."""
        body = {name: value for name, value in answer.body.items() if name != "stream_options"} | {"stream": False}
        if answer.seed is not None and (body["temperature"] or body["model"] != DEMO):
            # The mock's words depend on the seed even when nothing is sampled.
            body["seed"] = answer.seed
        key = json.dumps(body, sort_keys=True)
        async with self._places:
            if key not in self._known:
                right = Answer(body)
                await ask(self._http, self._url, right)
                if right.ends != ["done"]:
                    raise RuntimeError(f"the undisturbed run failed: {right.ends}")
                self._known[key] = Truth(right.text, right.tokens, right.finish[0])
        return self._known[key]

    async def faults(self, answers: Iterable[Answer]) -> list[str]:
        """What is wrong with each answer, in their order; empty: nothing."""
        answers = list(answers)
        found = [""] * len(answers)

        async def judge(index: int, answer: Answer) -> None:
            # Without a head nobody knows its seed; it has failed anyway.
            known = answer.seed is not None or answer.ends == ["done"]
            found[index] = answer.fault(await self.truth(answer)) if known else f"ended with {answer.ends}"

        async with trio.open_nursery() as nursery:
            for index, answer in enumerate(answers):
                nursery.start_soon(judge, index, answer)
        return found


@asynccontextmanager
async def made_stage(plan: Plan, logs: Path) -> AsyncIterator[Stage]:
    """Start everything, wait until it is whole; kill all of it at the end."""
    centre = plan.network.host("centre") if plan.network else Fleet(logs)
    outside = Fleet(folder(logs / "outside"))
    try:
        bootstrap = await Seat(centre, "meeting", "bootstrap", env=plan.env).start()
        way_in = ("--bootstrap", bootstrap.address)
        gateways = [Seat(centre, f"way-in-{n}", "gateway", "--port", "0", *way_in, env=plan.env) for n in range(plan.gateways)]
        nodes = []
        for number in range(plan.nodes):
            home = plan.network.far(f"node-{number}") if plan.network else centre
            nodes.append(Seat(home, f"node-{number}", "node", *node_args(plan.model), *way_in, env=plan.env))
        if plan.flood:
            flood = (
                "--port",
                "0",
                "--service-type",
                "mock",
                "--args",
                f"{FLOOD};tokens_per_second={FLOOD_RATE};context_length=100000",
            )
            nodes.append(Seat(centre, "flood", "node", *flood, *way_in))
        right = Seat(outside, "reference", "node", *reference_args(plan.model))
        async with trio.open_nursery() as nursery:
            for seat in (*gateways, *nodes, right):
                nursery.start_soon(seat.start)
        async with client_in(centre) as http, client_in(centre, small=True) as patient, client_in(outside) as plain:
            url = (await plain.get(f"{right.program.url}/info")).json()["url"]
            stage = Stage(plan, http, bootstrap, gateways, nodes, Reference(plain, url), patient)
            await stage.whole()
            yield stage
    finally:
        outside.end()
        if isinstance(centre, Host):
            centre.network.end()
        else:
            centre.end()


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def reference_args(model: str) -> tuple[str, ...]:
    """How a node is told to serve every model of a stage as fast as it goes."""
    if model == DEMO:
        return ("--port", "0")
    return ("--port", "0", "--service-type", "mock", "--args", f"{MOCK},{FLOOD};context_length=100000")


def node_args(model: str) -> tuple[str, ...]:
    """How a node is told to serve one of the models here."""
    if model == DEMO:
        return ("--port", "0")
    return ("--port", "0", "--service-type", "mock", "--args", f"{model};tokens_per_second={MOCK_RATE};context_length=100000")


def client_in(place: Fleet, *, small: bool = False) -> httpx2.AsyncClient:
    """An HTTP client without a limit of its own on connections. `small`: the kernel reads ahead as little as it can."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    if isinstance(place, Host):
        return place.http(timeout=30)
    options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)] if small else None
    transport = httpx2.AsyncHTTPTransport(limits=limits, socket_options=options, retries=0, trust_env=False)
    return httpx2.AsyncClient(transport=transport, timeout=30, trust_env=False)
