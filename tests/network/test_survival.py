"""Links that fall silent, and networks that fall apart and come together again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def linked_nodes(host: Host, gateway: Program) -> set[str]:
    """The nodes that a gateway can ask."""
    async with host.http() as http:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
    return {peer["peer_id"] for peer in peers if peer["role"] == "node" and peer["linked"]}


def sees(host: Host, gateway: Program, *nodes: Program) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return await linked_nodes(host, gateway) == {node.ready["peer_id"] for node in nodes}

    return look


async def test_a_node_is_out_that_died_or_fell_silent(network: Network, until: Any) -> None:
    one, two, three = network.host(), network.host(), network.host()
    gateway = await one.gateway("--no-mdns")
    way_in = ("--no-mdns", "--bootstrap", one.address_of(gateway))
    cut, stopped, killed = [await host.mock("m", *way_in) for host in (two, three, three)]
    await until(sees(one, gateway, cut, stopped, killed))
    killed.kill()
    await until(sees(one, gateway, cut, stopped))
    two.cut()
    stopped.process.send_signal(signal.SIGSTOP)
    await until(sees(one, gateway))


async def test_two_islands_work_alone_and_become_one_mesh_again(make_network: Any, until: Any) -> None:
    network = make_network(multicast=False)
    west, east = network.host("west"), network.host("east")
    bootstrap = await west.start("bootstrap", "--no-mdns")
    way_in = ("--no-mdns", "--bootstrap", west.address_of(bootstrap))
    gateways: dict[Host, Program] = {}
    nodes: dict[Host, Program] = {}

    async def start(host: Host) -> None:
        gateways[host] = await host.gateway(*way_in)
        nodes[host] = await host.mock("m", *way_in)

    async with trio.open_nursery() as nursery:
        for host in (west, east):
            nursery.start_soon(start, host)
    for host in (west, east):
        await until(sees(host, gateways[host], *nodes.values()))
    network.split([west], [east])
    for host in (west, east):
        await until(sees(host, gateways[host], nodes[host]))
    network.heal()
    for host in (west, east):
        await until(sees(host, gateways[host], *nodes.values()))
        assert gateways[host].process.poll() is None
