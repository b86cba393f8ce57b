"""Peers find each other: by mDNS alone, and by a bootstrap address alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

pytestmark = pytest.mark.system


async def linked_nodes(http: httpx2.AsyncClient, url: str) -> set[str]:
    peers = (await http.get(f"{url}/v1/mesh/peers")).json()["peers"]
    return {peer["peer_id"] for peer in peers if peer["role"] == "node" and peer["linked"]}


async def start_together(fleet: Any, *args: str) -> tuple[list[Any], list[Any]]:
    """Two nodes and two gateways at once."""
    port = ("--port", "0")
    nodes = [fleet.spawn("node", *port, "--service-type", "mock", "--args", f"model-{letter}", *args) for letter in "ab"]
    gateways = [fleet.spawn("gateway", *port, *args) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for program in (*nodes, *gateways):
            nursery.start_soon(fleet.ready, program)
    return nodes, gateways


async def both_gateways_serve_both_nodes(
    http: httpx2.AsyncClient, until: Callable[..., Any], chat: Any, nodes: list[Any], gateways: list[Any]
) -> None:
    expected = {node.ready["peer_id"] for node in nodes}
    for gateway in gateways:

        async def complete(url: str = gateway.url) -> bool:
            return await linked_nodes(http, url) == expected

        await until(complete)
        for model in ("model-a", "model-b"):
            answer = await http.post(f"{gateway.url}/v1/chat/completions", json=chat(model))
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == model


@pytest.mark.timeout(120)
async def test_two_nodes_and_two_gateways_meet_by_mdns_alone(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    nodes, gateways = await start_together(fleet)
    await both_gateways_serve_both_nodes(http, until, chat, nodes, gateways)


@pytest.mark.timeout(120)
async def test_two_nodes_and_two_gateways_meet_through_a_bootstrap_peer(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    nodes, gateways = await start_together(fleet, "--no-mdns", "--bootstrap", bootstrap.address)
    await both_gateways_serve_both_nodes(http, until, chat, nodes, gateways)


@pytest.mark.timeout(120)
async def test_any_peer_will_do_as_bootstrap(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    told = (await http.get(f"{gateway.url}/v1/mesh/bootstrap")).json()
    assert told == {**told, "peer_id": gateway.ready["peer_id"], "mesh": fleet.mesh, "private": False}
    node = await fleet.mock("model-a", "--no-mdns", "--bootstrap", told["addresses"][0])

    async def found() -> bool:
        return await linked_nodes(http, gateway.url) == {node.ready["peer_id"]}

    await until(found)
    assert (await http.post(f"{gateway.url}/v1/chat/completions", json=chat("model-a"))).status_code == 200


@pytest.mark.timeout(120)
async def test_meshes_of_other_names_stay_apart(fleet: Any, http: Any, until: Any) -> None:
    gateway = await fleet.gateway()
    await fleet.mock("ours")
    fleet.mesh += "-other"
    await fleet.mock("theirs")

    async def ours() -> bool:
        return bool(await linked_nodes(http, gateway.url))

    await until(ours)
    models = (await http.get(f"{gateway.url}/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["ours"]
