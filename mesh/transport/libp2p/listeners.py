"""Binds the sockets that we listen on, and says what is wrong when one cannot be bound."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

import trio

from mesh.errors import Misconfigured
from mesh.transport.libp2p.addresses import Address

BACKLOG = 128
"""Connections that the system keeps until we accept them."""

_ADVICE = {
    errno.EADDRINUSE: "another program uses this port; stop it, or choose another port with --listen (0 is any free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one of its own, or /ip4/0.0.0.0 for all of them",
    errno.EACCES: "ports below 1024 need privileges; choose a higher port with --listen",
    errno.EAFNOSUPPORT: "this machine has no IPv6; use an /ip4 address",
}


def listen_address(text: str) -> Address:
    """What an operator wrote after --listen. Raises Misconfigured."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise Misconfigured(f"cannot listen on {text[:100]!r}: {error}; write for example /ip4/0.0.0.0/tcp/4001") from error
    if address.kind not in ("ip4", "ip6") or address.peer_id is not None:
        raise Misconfigured(f"cannot listen on {text!r}: give an IP address and a port, for example /ip4/0.0.0.0/tcp/4001")
    return address


def bind(address: Address) -> tuple[Address, trio.SocketListener]:
    """A listening socket, and the address with the port that it really got. Raises Misconfigured."""
    listening = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT, which py-libp2p sets: with it a second program on the same port takes every other connection.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        advice = _ADVICE.get(error.errno or 0, f"{error.strerror}; choose another address with --listen")
        raise Misconfigured(f"cannot listen on {address}: {advice}") from error
    listening.setblocking(False)
    bound = replace(address, port=listening.getsockname()[1])
    return bound, trio.SocketListener(trio.socket.from_stdlib_socket(listening))
