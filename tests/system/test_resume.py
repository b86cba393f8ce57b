"""Streams of the demo model whose worker hangs, whose node or gateway is killed: their clients get every token, once."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

DEMO = "infermesh-demo"
SAMPLED = {"temperature": 0.8, "seed": 5, "ignore_eos": True, "max_tokens": 300}


class Sse:
    """One client of server-sent events. After `pause` chunks it does what it is told, and reads on."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.text = self.marker = self.node = self.error = ""
        self.chunks = 0
        self.tokens = 0
        self.done = False

    async def read(self, method: str, url: str, *, pause: int = 0, then: Callable[[], Any] = str, **options: Any) -> Sse:
        try:
            async with self._http.stream(method, url, **options) as answer:
                self.node = answer.headers.get("x-infermesh-node", "")
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    self._take(line)
                    if line.startswith("data: ") and self.chunks == pause:
                        then()
        except (httpx2.RemoteProtocolError, httpx2.ReadError):
            assert not self.done
        return self

    def _take(self, line: str) -> None:
        self.marker = line[4:] if line.startswith("id: ") else self.marker
        self.done = self.done or line == "data: [DONE]"
        if not line.startswith("data: {"):
            return
        event = json.loads(line[6:])
        self.error = event.get("error", {}).get("code", "")
        self.chunks += 1
        self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
        for choice in event.get("choices", []):
            self.text += choice["delta"].get("content") or ""


class Two:
    """Two nodes with the demo model, two gateways, and one question."""

    def __init__(self, fleet: Any, http: httpx2.AsyncClient) -> None:
        self._fleet, self._http = fleet, http

    async def start(self, until: Any) -> Two:
        self.first = await self._fleet.gateway("--no-mdns")
        others = [
            self._fleet.spawn("gateway", "--port", "0", "--no-mdns", "--bootstrap", self.first.address),
            *(self._fleet.spawn("node", "--port", "0", "--no-mdns", "--bootstrap", self.first.address) for _ in range(2)),
        ]
        for program in others:
            await self._fleet.ready(program)
        self.second, *nodes = others
        self.nodes = {node.ready["peer_id"]: node for node in nodes}
        for gateway in (self.first, self.second):
            await until(lambda gateway=gateway: self.sees_all(gateway), limit=60)
        return self

    async def sees_all(self, gateway: Any) -> bool:
        peers = (await self._http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        ready = [peer for peer in peers if peer["linked"] and any(model["state"] == "ready" for model in peer["models"])]
        return len(ready) == len(self.nodes)

    async def ask(self, gateway: Any, body: dict[str, Any], pause: int = 0, then: Callable[[Sse], Any] = str) -> Sse:
        client = Sse(self._http)
        url = f"{gateway.url}/v1/chat/completions"
        return await client.read("POST", url, json=body, pause=pause, then=lambda: then(client))

    async def generated(self) -> int:
        """Tokens that all engines have made."""
        total = 0
        for node in self.nodes.values():
            (model,) = (await self._http.get(f"{node.url}/info")).json()["models"]
            # A worker tells every second; before that nobody knows.
            total += model["metrics"]["engine"]["total_tokens_generated"] if model["metrics"] else 0
        return total


@pytest.fixture
async def two(fleet: Any, http: Any, until: Any) -> Two:
    return await Two(fleet, http).start(until)


async def socket_begins(url: str, begun: list[dict[str, Any]], enough: trio.Event) -> None:
    """Ask on a WebSocket and collect what comes until the gateway is gone."""
    question = {
        "type": "inference",
        "request_id": "mine",
        "model": DEMO,
        "stream": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    parameters = {"seed": 5, "temperature": 0.8, "max_new_tokens": 200}
    async with connect(f"ws{url.removeprefix('http')}/ws/me") as socket:
        await socket.send(json.dumps({**question, "parameters": parameters}))
        try:
            while True:
                begun.append(json.loads(await socket.recv()))
                if len(begun) > 6 or begun[-1]["type"] == "inference_complete":
                    enough.set()
        except ConnectionClosed:
            return


async def socket_resumes(url: str, token: str, index: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with connect(f"ws{url.removeprefix('http')}/ws/again") as socket:
        await socket.recv()
        await socket.send(json.dumps({"type": "resume", "resume_token": token, "index": index}))
        while not found or found[-1]["type"] == "inference_chunk":
            found.append(json.loads(await socket.recv()))
    return found


async def test_a_killed_gateway_a_worker_that_hangs_and_a_killed_node(two: Two, http: Any, until: Any, chat: Any) -> None:
    body = chat(DEMO, "Tell me a story.", stream=True, stream_options={"include_usage": True}) | SAMPLED
    whole = await two.ask(two.second, body)
    assert (whole.done, whole.tokens) == (True, 300)

    await gateway_killed(two, http, until, body, whole)
    await hang_or_death(two, body, whole, lambda node: node.worker().send_signal(signal.SIGSTOP))
    for node in two.nodes.values():
        node.worker().send_signal(signal.SIGCONT)
    await until(lambda: two.sees_all(two.second), limit=60)
    await hang_or_death(two, body, whole, lambda node: node.kill())


async def gateway_killed(two: Two, http: Any, until: Any, body: dict[str, Any], whole: Sse) -> None:
    """One client on SSE and one on a WebSocket lose their gateway; the other gateway gives them the rest, made once."""
    before = await stable(two.generated)
    begun: list[dict[str, Any]] = []
    enough = trio.Event()
    clients: list[Sse] = []

    async def stream() -> None:
        clients.append(await two.ask(two.first, body, pause=20, then=lambda _: both.set()))

    both = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(socket_begins, two.first.url, begun, enough)
        await enough.wait()
        nursery.start_soon(stream)
        await both.wait()
        two.first.kill()
    (client,) = clients
    assert client.text != whole.text or not client.done
    rest = await Sse(http).read("GET", f"{two.second.url}/v1/streams", headers={"last-event-id": client.marker})
    assert (rest.done, rest.tokens, rest.error) == (True, 300, "")
    assert client.text + rest.text == whole.text
    started, chunks = begun[1], [message for message in begun if message["type"] == "inference_chunk"]
    index = chunks[-1]["index"] + chunks[-1]["tokens"]
    *more, complete = await socket_resumes(two.second.url, started["resume_token"], index)
    assert complete["type"] == "inference_complete"
    assert [at for chunk in chunks + more for at in range(chunk["index"], chunk["index"] + chunk["tokens"])] == list(
        range(complete["usage"]["completion_tokens"])
    )
    made = 300 + complete["usage"]["completion_tokens"]
    assert await stable(two.generated) - before == made, "nothing is made twice"


async def stable(count: Callable[[], Awaitable[int]]) -> int:
    """What a counter says once it has not moved for two of the workers' reports."""
    seen = [-1]
    while len(seen) < 3 or len(set(seen[-3:])) > 1:
        seen.append(await count())
        await trio.sleep(1.1)
    return seen[-1]


async def hang_or_death(two: Two, body: dict[str, Any], whole: Sse, strike: Callable[[Any], Any]) -> None:
    """Three streams run; a node that has one of them is struck. All of them end well, with the text of the quiet run."""
    clients: list[Sse] = []
    struck: list[str] = []

    def once(client: Sse) -> None:
        if not struck:
            struck.append(client.node)
            strike(two.nodes[client.node])

    async def stream() -> None:
        clients.append(await two.ask(two.second, body, pause=20, then=once))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(stream)
    assert len(struck) == 1
    assert [(client.done, client.error, client.tokens) for client in clients] == [(True, "", 300)] * 3
    assert {client.text for client in clients} == {whole.text}
