"""A client of many requests that costs little itself: raw HTTP/1.1 on kept connections, arrivals on a schedule of their own.

Requests come when they are due, whether or not earlier ones were answered: a generator that waits for answers would spare
whoever is slow. What it costs is told beside what it measures.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 65_536


@dataclass(frozen=True)
class Answer:
    """One request: seconds since the run began and how long it took. `status` 0: the connection was lost."""

    at: float
    status: int
    seconds: float


@dataclass
class Run:
    """What came of a run, and the share of a core that it cost here."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def cores(self) -> float:
        return self.cpu / self.seconds

    def times(self, status: int, *, since: float = 0.0) -> list[float]:
        """Seconds that the answers with this status took, of those that came after `since`."""
        return [answer.seconds for answer in self.answers if answer.status == status and answer.at >= since]

    def rate(self, status: int, *, since: float, until: float) -> float:
        """Such answers per second, by when they were out."""
        out = [answer.at + answer.seconds for answer in self.answers if answer.status == status]
        return sum(since <= at < until for at in out) / (until - since)


class Load:
    """Requests for one body at one server."""

    def __init__(self, url: str, body: dict[str, Any], *, path: str = "/v1/completions") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: {len(text)}\r\n\r\n"
        self.request = head.encode() + text
        self._idle: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self._host, self._port)

    async def ask(self) -> int:
        """One request; its status."""
        stream = self._idle.pop() if self._idle else await self.connect()
        try:
            await stream.send_all(self.request)
            status = await _status(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(stream)
            return 0
        self._idle.append(stream)
        return status

    async def arrive(self, gaps: Iterator[float], seconds: float) -> Run:
        """Requests at these distances for so long; returns when all are answered."""
        run, start, cpu = Run(), time.perf_counter(), time.process_time()

        async def one(at: float) -> None:
            status = await self.ask()
            run.answers.append(Answer(at, status, time.perf_counter() - start - at))

        async with trio.open_nursery() as nursery:
            due = next(gaps)
            while due < seconds:
                if (early := due - (time.perf_counter() - start)) > 0:
                    await trio.sleep(early)
                nursery.start_soon(one, due)
                due += next(gaps)
        run.seconds, run.cpu = time.perf_counter() - start, time.process_time() - cpu
        return run

    async def keep(self, clients: int, seconds: float) -> Run:
        """So many clients, each with its next request as soon as its last one is answered."""
        run, start, cpu = Run(), time.perf_counter(), time.process_time()

        async def client() -> None:
            while (at := time.perf_counter() - start) < seconds:
                status = await self.ask()
                run.answers.append(Answer(at, status, time.perf_counter() - start - at))

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(client)
        run.seconds, run.cpu = time.perf_counter() - start, time.process_time() - cpu
        return run

    async def close(self) -> None:
        for stream in self._idle:
            await trio.aclose_forcefully(stream)
        self._idle.clear()


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Distances of independent arrivals, so many per second."""
    draw = random.Random(seed)
    while True:
        yield draw.expovariate(rate)


async def _status(stream: trio.SocketStream) -> int:
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += await _more(stream)
    head = received[:end].lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    left = length - (len(received) - end - 4)
    while left > 0:
        left -= len(await _more(stream))
    return int(head[9:12])


async def _more(stream: trio.SocketStream) -> bytes:
    data = bytes(await stream.receive_some(CHUNK))
    if not data:
        raise trio.BrokenResourceError("the server closed the connection")
    return data
