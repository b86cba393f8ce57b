"""Requests that must survive, and what became of them.

1. Every second one is streamed. Of four pairs two are greedy, one is sampled with a seed of the client's, one with a seed that
   the gateway draws and tells.
2. An answer is right when it has exactly one end, `done`, and text, length and finish reason are those of the undisturbed run.
3. The undisturbed run is the same request, with the same seed, at a node that nothing ever happens to.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import trio

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

Body = dict[str, Any]

PROMPTS = (
    "Tell me a long story.",
    "Who are you?",
    "What is a mesh?",
    "How do two peers find each other?",
    "Why does a node send a heartbeat?",
    "Explain what a gateway does.",
)
SEEDS = (7, 77, 777)
PATIENCE = 90.0
"""Seconds after which a request counts as hanging; the limits of the mesh itself are shorter."""


@dataclass
class Answer:
    """What a client saw of one request. Times are of time.perf_counter; `pieces` are the arrivals of a stream's text."""

    body: Body
    sent: float = 0.0
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    finish: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    node: str = ""
    attempts: int = 0
    seed: int | None = None
    last_id: str = ""
    """Where a stream can be picked up, as its events say."""
    lost: int = 0
    """How often the connection was lost and the stream picked up at another gateway."""
    begun: trio.Event = field(default_factory=trio.Event)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def streamed(self) -> bool:
        return bool(self.body["stream"])

    def gap_after(self, moment: float) -> float:
        """The longest pause between two pieces that was not over at `moment`; 0 when all had come."""
        pairs = zip(self.pieces, self.pieces[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > moment), default=0.0)

    def fault(self, truth: Truth) -> str:
        """What is wrong with it; empty: nothing."""
        if self.ends != ["done"]:
            return f"ended with {' and '.join(self.ends) or 'nothing'}"
        if len(self.finish) != 1:
            return f"{len(self.finish)} finish reasons"
        if (self.text, self.tokens, self.finish[0]) != (truth.text, truth.tokens, truth.finish):
            return f"differs from the undisturbed run from character {differs_at(self.text, truth.text)} on"
        return ""


@dataclass(frozen=True)
class Truth:
    """What the undisturbed run says."""

    text: str
    tokens: int
    finish: str


def differs_at(one: str, other: str) -> int:
    """The first place where two texts are not the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def make_body(source: random.Random, number: int, model: str, tokens: int, *, natural_end: bool = False) -> Body:
    """The `number`th request; see the head of this file. It has exactly `tokens` tokens unless it may end by itself."""
    streamed, sampling = number % 2 == 0, number // 2 % 4
    body: Body = {
        "model": model,
        "messages": [{"role": "user", "content": source.choice(PROMPTS)}],
        "max_tokens": tokens,
        # Not `ignore_eos`: what a model says behind its end may be tokens without text, which look like a pause.
        "min_tokens": 0 if natural_end else tokens,
        "stream": streamed,
        "temperature": 0.0 if sampling < 2 else 0.8,
    }
    if sampling == 2:
        body["seed"] = source.choice(SEEDS)
    if streamed:
        body["stream_options"] = {"include_usage": True}
    return body


async def ask(
    http: httpx2.AsyncClient, url: str, answer: Answer, *, begun_at: int = 5, pause: float = 0.0, others: Sequence[str] = ()
) -> None:
    """Ask and read to the end. `begun` is set after `begun_at` pieces or at the end; then nothing is read for `pause` seconds.

    A stream that loses its gateway is picked up at one of `others`, as browsers do.
    """
    answer.sent = time.perf_counter()
    try:
        with trio.move_on_after(PATIENCE + pause) as scope:
            if answer.streamed:
                await _ask_stream(http, url, answer, _Reading(answer, begun_at, pause), others)
            else:
                await _ask_whole(http, url, answer)
        if scope.cancelled_caught:
            answer.ends.append("hang")
    except httpx2.HTTPError as error:
        if not answer.ends:
            answer.ends.append(f"cut ({type(error).__name__})")
    finally:
        answer.ended = time.perf_counter()
        answer.begun.set()


async def _ask_whole(http: httpx2.AsyncClient, url: str, answer: Answer) -> None:
    reply = await http.post(f"{url}/v1/chat/completions", json=answer.body, timeout=PATIENCE)
    _read_head(reply, answer)
    told = reply.json()
    if reply.status_code != 200:
        answer.ends.append(str(told["error"]["code"]))
        return
    (choice,) = told["choices"]
    answer.texts, answer.tokens = [choice["message"]["content"]], told["usage"]["completion_tokens"]
    answer.finish.append(choice["finish_reason"])
    answer.ends.append("done")


async def _ask_stream(http: httpx2.AsyncClient, url: str, answer: Answer, reading: _Reading, others: Sequence[str]) -> None:
    request = http.build_request("POST", f"{url}/v1/chat/completions", json=answer.body, timeout=PATIENCE + reading.pause)
    try:
        await _read(http, request, reading)
    except httpx2.HTTPError:
        if answer.ends or not others or not answer.last_id:
            raise
    for other in others:
        if answer.ends or not answer.last_id:
            break
        answer.lost += 1
        again = {"Last-Event-ID": answer.last_id}
        await _read(http, http.build_request("GET", f"{other}/v1/streams", headers=again, timeout=PATIENCE), reading)
    if not answer.ends:
        answer.ends.append("cut")


async def _read(http: httpx2.AsyncClient, request: httpx2.Request, reading: _Reading) -> None:
    reply = await http.send(request, stream=True)
    try:
        _read_head(reply, reading.answer)
        if reply.status_code != 200:
            reading.answer.ends.append(str(json.loads(await reply.aread())["error"]["code"]))
            return
        async for line in reply.aiter_lines():
            await reading.take(line)
    finally:
        await reply.aclose()


class _Reading:
    """The events of one stream. One counts only with the empty line that ends it: what came of it before a cut comes again."""

    def __init__(self, answer: Answer, begun_at: int, pause: float) -> None:
        self.answer = answer
        self.pause = pause
        self._begun_at = begun_at
        self._id = self._data = ""

    async def take(self, line: str) -> None:
        name, _, value = line.partition(": ")
        if name == "id":
            self._id = value
        elif name == "data":
            self._data = value
        elif not line and self._data:
            _read_event(self._data, self.answer)
            self.answer.last_id = self._id or self.answer.last_id
            self._id = self._data = ""
            await self._begin()

    async def _begin(self) -> None:
        if len(self.answer.pieces) >= self._begun_at and not self.answer.begun.is_set():
            self.answer.begun.set()
            await trio.sleep(self.pause)


def _read_head(reply: httpx2.Response, answer: Answer) -> None:
    """Of a stream that is picked up, the first head says whom it came from and by which seed."""
    if answer.lost:
        return
    answer.node = reply.headers.get("x-infermesh-node", "")
    answer.attempts = int(reply.headers.get("x-infermesh-attempts", 0))
    seed = reply.headers.get("x-infermesh-seed")
    answer.seed = answer.body.get("seed") if seed is None else int(seed)


def _read_event(data: str, answer: Answer) -> None:
    if data == "[DONE]":
        answer.ends.append("done")
        return
    event = json.loads(data)
    if "error" in event:
        answer.ends.append(str(event["error"]["code"]))
        return
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    for choice in event["choices"]:
        if text := choice["delta"].get("content"):
            answer.texts.append(text)
            answer.pieces.append(time.perf_counter())
        if choice["finish_reason"]:
            answer.finish.append(choice["finish_reason"])
