"""`/ws/{client_id}`: one session per socket, many requests at once.

1. Every message out is one JSON object with `type` and `timestamp`. Whatever comes in, the socket stays open and is answered.
2. A request runs in a task of its own: pings, cancels and other requests never wait for it. At most `MAX_REQUESTS` at once.
3. Subscriptions and requests belong to their socket, never to the client id: two sockets with one id do not meet, and one that
   closes ends its own requests only.
4. Each `inference` ends in exactly one of `inference_complete`, `inference_result`, `inference_error`, `inference_cancelled`.
5. When the gateway stops, nothing more is taken in; what runs still ends, and the socket closes with 1001.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway import report
from gateway.socket_answers import Answer, TextAnswer, VectorAnswer
from gateway.socket_messages import (
    TEXT_EMBEDDING,
    Cancel,
    ClientMessage,
    Inference,
    Ping,
    Resume,
    Status,
    Subscribe,
    Unsubscribe,
    parse,
    request_id_in,
)
from gateway.socket_requests import Asker, text_request, vector_request
from gateway.streams.token import ResumeToken
from mesh.errors import Busy, Conflict, MeshError, NotFound
from mesh.messages.inference import Reader

if TYPE_CHECKING:
    from gateway.streams.pick_up import FoundStream, Streams
    from gateway.topics import Topics
    from mesh.http import WebSocket
    from mesh.service import InferenceService

MAX_REQUESTS = 64
ANYBODY = Asker()
Work = Callable[[], Awaitable[None]]

logger = logging.getLogger(__name__)


class Session:
    """One socket. See the head of this file."""

    def __init__(
        self,
        socket: WebSocket,
        client_id: str,
        *,
        service: InferenceService,
        topics: Topics,
        streams: Streams,
        max_requests: int = MAX_REQUESTS,
        asker: Asker = ANYBODY,
    ) -> None:
        self._socket = socket
        self._client_id = client_id
        self._service = service
        self._topics = topics
        self._streams = streams
        self._asker = asker
        self._max_requests = max_requests
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._requests: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Answer messages until the socket ends, which cancels this, or the gateway stops, which lets what runs end."""
        self._send("connection", status="connected", client_id=self._client_id)
        try:
            async with trio.open_nursery() as self._nursery:
                await self._receive()
        finally:
            for unsubscribe in self._subscriptions.values():
                unsubscribe()

    async def _receive(self) -> None:
        while True:
            try:
                text = await self._socket.receive()
            except trio.EndOfChannel:
                return
            try:
                self._handle(parse(text))
            except MeshError as error:
                self._refuse(error, request_id_in(text))

    def _handle(self, message: ClientMessage) -> None:
        match message:
            case Inference():
                self._start(message)
            case Cancel():
                self._cancel(message.request_id)
            case Ping():
                self._send("pong")
            case Subscribe():
                self._subscribe(message.topics)
            case Unsubscribe():
                self._unsubscribe(message.topics)
            case Status():
                self._status(details=message.details)
            case Resume():
                self._resume(message)

    def _subscribe(self, topics: list[str]) -> None:
        self._topics.check(topics)
        self._send("subscribed", topics=topics)
        for topic in topics:
            if topic not in self._subscriptions:
                self._subscriptions[topic] = self._topics.subscribe(topic, self._socket.send, tenant=self._asker.tenant)

    def _unsubscribe(self, topics: list[str]) -> None:
        self._topics.check(topics)
        for topic in topics:
            self._subscriptions.pop(topic, lambda: None)()
        self._send("unsubscribed", topics=topics)

    def _status(self, *, details: bool) -> None:
        found = self._topics.status()
        if not details:
            del found["backends"]
        self._send("status", detail_level="full" if details else "summary", backend_status=found)

    def _cancel(self, request_id: str) -> None:
        scope = self._requests.get(request_id)
        if scope is None:
            raise NotFound(f"no request {request_id!r} is running on this socket", code="request_not_found")
        scope.cancel()

    def _start(self, message: Inference) -> None:
        request_id = message.request_id or str(uuid.uuid4())
        self._check_room(request_id)
        if message.task == TEXT_EMBEDDING:
            self._start_vectors(request_id, message)
        else:
            self._start_text(request_id, message)

    def _start_text(self, request_id: str, message: Inference) -> None:
        answer = TextAnswer(self._send, request_id, message)

        async def work() -> None:
            request = text_request(message, self._asker, name=request_id)
            await answer.run(self._service.infer, request, self._socket.room)

        self._spawn(request_id, answer, work)

    def _start_vectors(self, request_id: str, message: Inference) -> None:
        answer = VectorAnswer(self._send, request_id, message)

        async def work() -> None:
            request, inputs = vector_request(message, self._asker)
            await answer.run(self._service, request, inputs, self._socket.room)

        self._spawn(request_id, answer, work)

    def _spawn(self, request_id: str, answer: Answer, work: Work) -> None:
        self._requests[request_id] = trio.CancelScope()
        self._nursery.start_soon(self._infer, request_id, answer, work)

    def _resume(self, message: Resume) -> None:
        token = ResumeToken.parse(message.resume_token)
        self._check_room(message.resume_token)
        self._requests[message.resume_token] = trio.CancelScope()
        self._nursery.start_soon(self._find, token, message)

    async def _find(self, token: ResumeToken, message: Resume) -> None:
        """Look for a stream, and go on with it under the name that it had."""
        try:
            with self._requests[message.resume_token]:
                self._go_on(await self._streams.find(token, message.index, tenant=self._asker.tenant))
        except MeshError as error:
            self._refuse(error, None)
        finally:
            del self._requests[message.resume_token]

    def _go_on(self, found: FoundStream) -> None:
        reader = found.request.reader or Reader()
        request_id = reader.name or found.request.request_id
        self._check_room(request_id)
        message = Inference(model=reader.model or found.request.model, stream=True)
        answer = TextAnswer(self._send, request_id, message, started=True)
        self._spawn(request_id, answer, partial(answer.run, found.infer, found.request, self._socket.room))

    def _check_room(self, request_id: str) -> None:
        if request_id in self._requests:
            raise Conflict(
                f"a request {request_id!r} is running on this socket already; choose another id", code="request_id_in_use"
            )
        if len(self._requests) >= self._max_requests:
            raise Busy(f"{self._max_requests} requests are running on this socket, its limit; wait for one to end")

    async def _infer(self, request_id: str, answer: Answer, work: Work) -> None:
        scope = self._requests[request_id]
        try:
            with scope:
                await self._answer(answer, work)
            if scope.cancelled_caught and not answer.ended:
                self._send("inference_cancelled", request_id=request_id)
        finally:
            del self._requests[request_id]

    async def _answer(self, answer: Answer, work: Work) -> None:
        try:
            await work()
        except MeshError as error:
            answer.fail(error)
        except Exception:
            logger.exception("an inference on the WebSocket broke")
            answer.fail(MeshError("internal error; the gateway's log says more"))

    def _refuse(self, error: MeshError, request_id: str | None) -> None:
        extra = {} if request_id is None else {"request_id": request_id}
        self._send("error", message=error.message, code=error.code, **extra)

    def _send(self, kind: str, /, **fields: Any) -> None:
        message = {"type": kind, **fields, "timestamp": report.timestamp()}
        self._socket.send(msgspec.json.encode(message).decode())
