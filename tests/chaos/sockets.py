"""A WebSocket client that loses its gateway, and picks its stream up at another one."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import trio
from websockets.exceptions import WebSocketException
from websockets.trio.client import connect

from tests.chaos.traffic import PATIENCE, Answer, Body

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

SAMPLING = ("temperature", "seed", "top_p", "top_k")


def socket_body(source: random.Random, body: Body) -> Body:
    """The same request as it can be asked over a WebSocket: with a seed, and free to end by itself."""
    wanted = {name: body[name] for name in ("model", "messages", "max_tokens", "temperature")}
    return {**wanted, "stream": True, "seed": body.get("seed", source.randrange(2**31)), "top_p": 0.9, "top_k": 50}


async def ask_socket(url: str, answer: Answer, *, begun_at: int = 5, others: Sequence[str] = ()) -> None:
    """As `traffic.ask`, for a stream over a WebSocket. Its body is a `socket_body`."""
    reader = _Reader(answer, begun_at)
    answer.sent, answer.seed = time.perf_counter(), answer.body["seed"]
    try:
        with trio.move_on_after(PATIENCE) as scope:
            await _listen(url, opening(answer.body), reader)
            for other in others:
                if answer.ends or not reader.token:
                    break
                answer.lost += 1
                await _listen(other, {"type": "resume", "resume_token": reader.token, "index": reader.index}, reader)
        if not answer.ends:
            answer.ends.append("hang" if scope.cancelled_caught else "cut")
    finally:
        answer.ended = time.perf_counter()
        answer.begun.set()


def opening(body: Body) -> dict[str, Any]:
    """The message that asks for what an HTTP body asks for."""
    parameters = {"max_new_tokens": body["max_tokens"]} | {name: body[name] for name in SAMPLING}
    return {
        "type": "inference",
        "request_id": "one",
        "model": body["model"],
        "messages": body["messages"],
        "parameters": parameters,
        "stream": True,
    }


async def _listen(url: str, message: dict[str, Any], reader: _Reader) -> None:
    """Say one thing, and read until the stream ends or the connection is lost."""
    try:
        async with connect(url.replace("http", "ws", 1) + "/ws/chaos") as socket:
            await socket.send(json.dumps(message))
            while not reader.answer.ends:
                reader.take(json.loads(await socket.recv()))
    except (WebSocketException, OSError):
        # Nothing was said of an end: the caller sees that the stream is not complete.
        return


class _Reader:
    """What the messages say. `index`: the token that comes next."""

    def __init__(self, answer: Answer, begun_at: int) -> None:
        self.answer = answer
        self.token = ""
        self.index = 0
        self._begun_at = begun_at

    def take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "inference_started":
                self.token = message["resume_token"] or ""
                self.answer.node = message["node"]
            case "inference_chunk":
                self._grow(message)
            case "inference_complete":
                self.answer.tokens = message["usage"]["completion_tokens"]
                self.answer.finish.append(message["finish_reason"])
                self.answer.ends.append("done")
            case "inference_error" | "error":
                self.answer.ends.append(str(message.get("error", message).get("code")))
            case _:
                pass

    def _grow(self, message: dict[str, Any]) -> None:
        if message["index"] != self.index:
            self.answer.ends.append(f"token {message['index']} where {self.index} was due")
            return
        self.index += message["tokens"]
        if message["chunk"]:
            self.answer.texts.append(message["chunk"])
            self.answer.pieces.append(time.perf_counter())
        if len(self.answer.pieces) >= self._begun_at:
            self.answer.begun.set()
