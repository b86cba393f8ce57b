"""Which backend has which ports: P for OpenAI, P+1 for its supervisor.

1. The first backend has `--port`, each further one the next free step of two, unless its own `port` says otherwise.
2. No port has two owners; a clash is refused naming both.
3. Port 0 is a free pair, found when the backend starts, and clashes with nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HIGHEST = 65534
"""P+1 is a port as well."""


def plan_ports(wanted: Sequence[tuple[str, int | None]], first: int, *, taken: Mapping[int, str]) -> list[int]:
    """P for each (owner, wish). `taken`: ports that something else of this process has, with its name. Raises Misconfigured."""
    owners = dict(taken)
    ports = [_fixed(owners, owner, first if wish is None and index == 0 else wish) for index, (owner, wish) in enumerate(wanted)]
    following = first
    for index, (owner, _) in enumerate(wanted):
        if ports[index] is None:
            following = _next(owners, following) if first else 0
            ports[index] = _fixed(owners, owner, following)
    return [port or 0 for port in ports]


def listen_ports(addresses: Sequence[str]) -> dict[int, str]:
    """The ports that libp2p listens on, with what they are called in errors."""
    found: dict[int, str] = {}
    for address in addresses:
        parts = address.split("/")
        if "tcp" in parts[:-1] and (port := int(parts[parts.index("tcp") + 1])):
            found[port] = f"--listen {address}"
    return found


def _fixed(owners: dict[int, str], owner: str, port: int | None) -> int | None:
    if not port:
        return port
    for number, role in ((port, "P"), (port + 1, "P+1")):
        if number in owners:
            raise Misconfigured(
                f"port {number} is {role} of {owner} and {owners[number]} as well; give one of them another port (P and P+1 must"
                " both be free)"
            )
    owners[port], owners[port + 1] = f"P of {owner}", f"P+1 of {owner}"
    return port


def _next(owners: Mapping[int, str], after: int) -> int:
    for port in range(after + 2, HIGHEST + 1, 2):
        if port not in owners and port + 1 not in owners:
            return port
    raise Misconfigured(f"there are no ports left above {after} for all backends; choose a lower --port")
