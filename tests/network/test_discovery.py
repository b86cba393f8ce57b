"""Peers on different machines find each other, and say why when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def together(*starts: Callable[[], Any]) -> list[Program]:
    """Start programs at the same time."""
    started: dict[int, Program] = {}

    async def start(index: int, begin: Callable[[], Any]) -> None:
        started[index] = await begin()

    async with trio.open_nursery() as nursery:
        for index, begin in enumerate(starts):
            nursery.start_soon(start, index, begin)
    return [started[index] for index in range(len(starts))]


async def answers(host: Host, gateway: Program, model: str) -> bool:
    """True once a gateway, asked from its own machine, has an answer of the model."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    async with host.http() as http:
        return (await http.post(f"{gateway.url}/v1/chat/completions", json=body)).status_code == 200


async def test_by_mdns_alone(network: Network, until: Any) -> None:
    one, two = network.host(), network.host()
    gateway, _node = await together(one.gateway, lambda: two.mock("model-a"))
    await until(lambda: answers(one, gateway, "model-a"))


@pytest.mark.parametrize("version", [4, 6])
async def test_without_multicast_by_a_bootstrap_address(make_network: Any, until: Any, version: int) -> None:
    network = make_network(multicast=False)
    one, two, three = network.host(), network.host(), network.host()
    bootstrap = await one.start("bootstrap")
    way_in = ("--bootstrap", one.address_of(bootstrap, version))
    gateway, _node = await together(lambda: two.gateway(*way_in), lambda: three.mock("model-a", *way_in))
    await until(lambda: answers(two, gateway, "model-a"))


async def test_a_wrong_bootstrap_address_is_explained(network: Network, until: Any) -> None:
    one, two = network.host(), network.host()
    peer = (await one.start("bootstrap", "--no-mdns")).ready["peer_id"]
    reasons = {
        f"/ip4/{one.ipv4}/tcp/9/p2p/{peer}": "connection refused",
        f"/ip4/10.77.0.99/tcp/4001/p2p/{peer}": "no route to host",
        f"/ip4/192.168.250.1/tcp/4001/p2p/{peer}": "network is unreachable",
    }
    nodes = {address: two.spawn("gateway", "--port", "0", "--no-mdns", "--bootstrap", address) for address in reasons}
    for address, node in nodes.items():

        def explained(log: Path = node.log, address: str = address) -> bool:
            return any(
                "warning" in line and address in line and reasons[address] in line for line in log.read_text().splitlines()
            )

        await until(explained)
