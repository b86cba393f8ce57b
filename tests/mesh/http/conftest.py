from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from mesh.http import Limits, Router, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Client:
    """A raw socket that speaks just enough HTTP to look at what the server really sends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.buffer += data
        return data != b""

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self.buffer:
            if not await self._more():
                raise EOFError(f"the server closed after {self.buffer!r}")
        end = self.buffer.index(mark) + len(mark)
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not await self._more():
                raise EOFError(f"the server closed after {self.buffer!r}")
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer."""
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers

    async def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer."""
        status, headers = await self.head()
        if not has_body or status == 204:
            return status, headers, b""
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, await self.exactly(int(headers["content-length"]))
        body = b""
        while True:
            size = int((await self.until(b"\r\n")).strip(), 16)
            body += await self.exactly(size)
            await self.until(b"\r\n")
            if size == 0:
                return status, headers, body

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        while await self._more():
            pass
        return self.buffer


class Server:
    """A listening server of the test's own router."""

    def __init__(self, port: int, stopping: trio.Event, stopped: trio.Event) -> None:
        self.port = port
        self.stopping = stopping
        self.stopped = stopped
        """Set when `serve` returned by itself."""
        self._clients: list[trio.SocketStream] = []

    async def connect(self) -> Client:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._clients.append(stream)
        return Client(stream)

    def close(self) -> None:
        for stream in self._clients:
            stream.socket.close()


@pytest.fixture
def running() -> Callable[..., object]:
    """`async with running(router, **limits) as server`; cancelled at the end, which has to work at once."""

    @asynccontextmanager
    async def start(router: Router, **limits: float) -> AsyncIterator[Server]:
        stopping, stopped = trio.Event(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[int]) -> None:
            await serve(router, "127.0.0.1", 0, limits=Limits(**limits), stopping=stopping, task_status=task_status)
            stopped.set()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                server = Server(await nursery.start(run), stopping, stopped)
                try:
                    yield server
                finally:
                    nursery.cancel_scope.cancel()
                    server.close()

    return start
