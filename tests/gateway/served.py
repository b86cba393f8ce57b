"""A gateway behind a real port, its WebSocket clients, and steps of nodes that do not end by themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio
from websockets.trio.client import connect

from mesh.messages.inference import Accepted, Delta

if TYPE_CHECKING:
    from gateway.app import Gateway


class Served:
    """A gateway behind a real port."""

    def __init__(self, gateway: Gateway, port: int, stopping: trio.Event) -> None:
        self.gateway = gateway
        self.port = port
        self.stopping = stopping
        self.stopped = trio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def socket(self, client_id: str = "me"):
        return connect(f"ws://127.0.0.1:{self.port}/ws/{client_id}")


class Client:
    """One socket and all it was told."""

    def __init__(self, socket) -> None:
        self._socket = socket

    async def say(self, **message) -> None:
        await self._socket.send(json.dumps(message))

    async def next(self) -> dict:
        with trio.fail_after(10):
            message = json.loads(await self._socket.recv())
        assert message["timestamp"].endswith("Z")
        return message

    async def until(self, kind: str, **fields) -> dict:
        while True:
            message = await self.next()
            if message["type"] == kind and all(message.get(key) == value for key, value in fields.items()):
                return message

    async def infer(self, request_id: str, **more) -> None:
        asked = {"model": "m", "inputs": "hi", "stream": True, "parameters": {"max_new_tokens": 100_000}}
        await self.say(type="inference", request_id=request_id, **asked | more)


async def begin_stream(port: int) -> trio.SocketStream:
    """A raw client that has read the first chunk of a stream: it can go away at any moment."""
    body = b'{"model": "m", "prompt": "hi", "stream": true, "max_tokens": 100000}'
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    received = b""
    with trio.fail_after(10):
        while b"data:" not in received:
            received += await stream.receive_some(4096)
    return stream


async def endless(request, emit):
    emit(Accepted())
    offset = 0
    while True:
        emit(Delta(offset, [offset], f"{offset} "))
        offset += 1
        await trio.sleep(0.005)


async def hang(request, emit):
    emit(Accepted())
    await trio.sleep_forever()
