"""Machines whose networks come, change and go while their programs run."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def ip(host: Host, *commands: str) -> None:
    """Change the interface of a host."""
    for command in commands:
        subprocess.run(["ip", "-n", host.namespace, *command.split()], check=True, capture_output=True)


async def record_of(host: Host, gateway: Program, peer_id: str) -> dict[str, Any] | None:
    """What a gateway, asked from its own machine, knows of a peer while it is linked with it."""
    async with host.http() as http:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
    return next((peer for peer in peers if peer["peer_id"] == peer_id and peer["linked"]), None)


def hosts_of(record: dict[str, Any]) -> set[str]:
    return {address.split("/")[2] for address in record["addresses"]}


async def test_a_network_that_is_joined_later_and_changed(network: Network, until: Any) -> None:
    one, two = network.host(), network.host()
    ip(two, "link set eth0 down", "address flush dev eth0")
    gateway = await one.gateway()
    node = await two.mock()
    assert {address.split("/")[2] for address in node.ready["addresses"]} == {"127.0.0.1", "::1"}

    async def linked_at(*wanted: str) -> bool:
        record = await record_of(one, gateway, node.ready["peer_id"])
        return record is not None and hosts_of(record) == {"127.0.0.1", "::1", *wanted}

    # The cable is plugged in: mDNS over IPv6 alone brings the two together.
    ip(two, "link set eth0 up", f"address add {two.ipv6}/64 dev eth0 nodad")
    await until(lambda: linked_at(two.ipv6))
    # Another network with other addresses: the same node is found there.
    ip(two, f"address del {two.ipv6}/64 dev eth0", "address add 10.77.0.201/24 dev eth0")
    await until(lambda: linked_at("10.77.0.201"), limit=60)
    log = node.log.read_text()
    assert "mDNS listens on lo 127.0.0.1, eth0 10.77.0.201 now" in log
    assert "our addresses changed" in log
