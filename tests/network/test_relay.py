"""A node that nobody can dial: served over the bootstrap peer, and directly once there is a way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MODEL = "model-a"
ARGS = f"{MODEL};tokens_per_second=20;length=80"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "seed": 7, "stream": True}


async def answer(host: Host, gateway: Program, tokens: int = 80, on_text: Any = lambda: None) -> list[str]:
    """The pieces of one streamed chat; fails unless it ends as it should."""
    texts: list[str] = []
    ended = False
    async with (
        host.http() as http,
        http.stream("POST", f"{gateway.url}/v1/chat/completions", json={**BODY, "max_tokens": tokens}) as response,
    ):
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            ended = ended or line == "data: [DONE]"
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"] or [{"delta": {}}]
                if text := choice["delta"].get("content"):
                    texts.append(text)
                    on_text()
    assert ended, f"the stream was cut after {len(texts)} pieces"
    return texts


async def link_to(host: Host, gateway: Program, node: Program) -> tuple[str | None, str | None]:
    """What carries the gateway's link to the node, and which relay, as the gateway says."""
    async with host.http() as http:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
    found = next((peer for peer in peers if peer["peer_id"] == node.ready["peer_id"]), {})
    return found.get("carrier"), found.get("via")


async def test_a_node_without_a_way_in_answers_over_a_relay_and_directly_once_there_is_one(network: Network, until: Any) -> None:
    public, street, home = network.host("public"), network.far("street", inbound=False), network.far("home", inbound=False)
    bootstrap = await public.start("bootstrap")
    way_in = ("--no-mdns", "--bootstrap", public.address_of(bootstrap))
    node = await home.node("--service-type", "mock", "--args", ARGS, *way_in)
    gateway = await street.gateway(*way_in)

    async def carried(*carriers: str) -> bool:
        return (await link_to(street, gateway, node))[0] in carriers

    await until(lambda: carried("relay"))
    assert await link_to(street, gateway, node) == ("relay", bootstrap.ready["peer_id"])
    async with home.http() as http:
        said = (await http.get(f"{node.url}/network")).json()
    assert (said["reachability"], said["relayed_by"]) == ("not reachable", [bootstrap.ready["peer_id"]])
    begun = trio.Event()
    streamed: list[list[str]] = []

    async def stream() -> None:
        streamed.append(await answer(street, gateway, on_text=begun.set))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        await begun.wait()
        network.open(street)
        await until(lambda: carried("libp2p", "direct"))
        assert not streamed, "the direct path came while the answer was on its way"
    assert len(streamed[0]) == 80
    assert await answer(street, gateway, 20) == streamed[0][:20]


async def test_a_restarted_bootstrap_peer_relays_again(network: Network, until: Any) -> None:
    public, street, home = network.host("public"), network.far("street", inbound=False), network.far("home", inbound=False)
    public.listen = ["/ip4/0.0.0.0/tcp/4001"]
    state = f"--state-dir={public.logs}/bootstrap"
    bootstrap = await public.start("bootstrap", state)
    way_in = ("--no-mdns", "--bootstrap", public.address_of(bootstrap))
    node = await home.mock(MODEL, *way_in)
    gateway = await street.gateway(*way_in)

    async def relayed() -> bool:
        return (await link_to(street, gateway, node))[0] == "relay"

    await until(relayed)
    bootstrap.kill()
    await until(lambda: gone(street, gateway, node))
    await public.start("bootstrap", state)
    await until(relayed)
    assert await answer(street, gateway, 20)


async def gone(host: Host, gateway: Program, node: Program) -> bool:
    return (await link_to(host, gateway, node))[0] is None
