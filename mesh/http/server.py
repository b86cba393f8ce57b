"""The server: listening sockets, and the connections they bring.

1. `serve` runs until it is cancelled, which ends everything at once, or until `stopping` is set, which lets answers finish.
2. Nothing that a client does or leaves undone can hold up either.
3. Over the cap a client gets a 503; far over it, its connection is closed without a word.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from typing import TYPE_CHECKING

import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.http.connection import Connection
from mesh.http.limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from mesh.http.limits import Limits
    from mesh.http.router import Router

LOGGER = logging.getLogger(__name__)

_BACKLOG = 1024
_REFUSALS = 64
"""Clients over the cap that are told so, at the same time."""
_ACCEPTS_IN_A_ROW = 64
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_RESOURCES_SECONDS = 0.1


async def serve(
    router: Router,
    host: str,
    port: int,
    *,
    limits: Limits = DEFAULT_LIMITS,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP on every address of `host`; `started(port)` once bound, with the real port when `port` is 0.

    Blocks until cancelled, or until `stopping` is set and the last answer is out. Raises Misconfigured when it cannot bind.
    """
    listeners = await _bind(host, port)
    server = _Server(router, limits)
    async with trio.open_nursery() as connections:
        with contextlib.ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.close)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener, connections)
                task_status.started(listeners[0].getsockname()[1])
                if stopping is None:
                    await trio.sleep_forever()
                else:
                    await stopping.wait()
                accepting.cancel_scope.cancel()
        server.stop()


class _Server:
    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._open: set[Connection] = set()

    async def accept(self, listener: socket.socket, connections: trio.Nursery) -> None:
        """Take connections until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(_ACCEPTS_IN_A_ROW):
                    accepted, address = listener.accept()
                    self._start(accepted, str(address[0]), connections)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    LOGGER.warning("cannot accept a connection: %s; raise the limit of open files (ulimit -n)", error.strerror)
                    await trio.sleep(_OUT_OF_RESOURCES_SECONDS)
            await trio.lowlevel.checkpoint()

    def stop(self) -> None:
        """Close what is idle, let the rest finish."""
        for connection in list(self._open):
            connection.stop()

    def _start(self, accepted: socket.socket, client: str, connections: trio.Nursery) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(accepted, client, router=self._router, limits=self._limits)
        if len(self._open) < self._limits.connections + _REFUSALS:
            self._open.add(connection)
            connections.start_soon(self._run, connection, len(self._open) > self._limits.connections)
        else:
            accepted.close()

    async def _run(self, connection: Connection, is_over_cap: bool) -> None:
        try:
            if is_over_cap:
                message = f"this server has {self._limits.connections} connections open; try again"
                await connection.refuse(Unavailable(message, code="too_many_connections", retry_after=1))
            else:
                await connection.run()
        finally:
            self._open.discard(connection)


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`, all with the same port."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise Misconfigured(f"cannot listen on {host!r} port {port}: {error}; give --host an address of this machine") from error
    listeners: list[socket.socket] = []
    refused: list[OSError] = []
    for family, _, _, _, address in found:
        try:
            listeners.append(_listen(family, (address[0], port or _port_of(listeners), *address[2:])))
        except OSError as error:
            refused.append(error)
    in_use = next((error for error in refused if error.errno == errno.EADDRINUSE), None)
    if in_use or not listeners:
        for listener in listeners:
            listener.close()
        raise _bind_error(host, port, in_use or refused[0])
    return listeners


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _port_of(listeners: list[socket.socket]) -> int:
    return int(listeners[0].getsockname()[1]) if listeners else 0


def _bind_error(host: str, port: int, error: OSError) -> Misconfigured:
    if error.errno == errno.EADDRINUSE:
        return Misconfigured(
            f"port {port} on {host} is taken; stop the program that has it, or choose another with --port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return Misconfigured(f"port {port} needs privileges; choose one above 1023 with --port (0 takes a free one)")
    if error.errno == errno.EADDRNOTAVAIL:
        return Misconfigured(f"{host} is not an address of this machine; give --host one that is, such as 127.0.0.1")
    return Misconfigured(f"cannot listen on {host} port {port}: {error.strerror}; choose others with --host and --port")
