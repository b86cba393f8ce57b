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
from gateway.socket_messages import (
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
    request_of,
)
from gateway.streams.token import ResumeToken
from mesh.errors import BackendFailed, Busy, Conflict, MeshError, NotFound
from mesh.http import error_body
from mesh.messages.inference import ANONYMOUS, Accepted, Delta, Done, Reader
from mesh.service import Emit, paced

if TYPE_CHECKING:
    from gateway.streams.pick_up import FoundStream, Streams
    from gateway.topics import Topics
    from mesh.http import WebSocket
    from mesh.messages.inference import Event
    from mesh.service import InferenceService

MAX_REQUESTS = 64
MAX_REPLY_CHARACTERS = 1024 * 1024
"""In one answer that is not streamed: what one message may hold."""
Work = Callable[[Emit], Awaitable[None]]

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
        tenant: str = ANONYMOUS,
    ) -> None:
        self._socket = socket
        self._client_id = client_id
        self._service = service
        self._topics = topics
        self._streams = streams
        self._tenant = tenant
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
                self._subscriptions[topic] = self._topics.subscribe(topic, self._socket.send, tenant=self._tenant)

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

        async def work(emit: Emit) -> None:
            await self._service.infer(request_of(message, tenant=self._tenant, name=request_id), emit)

        self._spawn(request_id, _Answer(self._send, request_id, message), work)

    def _spawn(self, request_id: str, answer: _Answer, work: Work) -> None:
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
                self._go_on(await self._streams.find(token, message.index, tenant=self._tenant))
        except MeshError as error:
            self._refuse(error, None)
        finally:
            del self._requests[message.resume_token]

    def _go_on(self, found: FoundStream) -> None:
        reader = found.request.reader or Reader()
        request_id = reader.name or found.request.request_id
        self._check_room(request_id)
        message = Inference(model=reader.model or found.request.model, stream=True)
        self._spawn(request_id, _Answer(self._send, request_id, message, started=True), partial(found.infer, found.request))

    def _check_room(self, request_id: str) -> None:
        if request_id in self._requests:
            raise Conflict(
                f"a request {request_id!r} is running on this socket already; choose another id", code="request_id_in_use"
            )
        if len(self._requests) >= self._max_requests:
            raise Busy(f"{self._max_requests} requests are running on this socket, its limit; wait for one to end")

    async def _infer(self, request_id: str, answer: _Answer, work: Work) -> None:
        scope = self._requests[request_id]
        try:
            with scope:
                await self._answer(answer, work)
            if scope.cancelled_caught and not answer.ended:
                self._send("inference_cancelled", request_id=request_id)
        finally:
            del self._requests[request_id]

    async def _answer(self, answer: _Answer, work: Work) -> None:
        try:
            with answer.scope:
                await work(paced(answer.emit, self._socket.room))
            if answer.scope.cancel_called:
                answer.fail(BackendFailed("the answer grew too long for one message; ask for a stream", code="reply_too_large"))
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


class _Answer:
    """Turns the events of one request into messages, streamed or in one piece."""

    def __init__(self, send: Callable[..., None], request_id: str, message: Inference, *, started: bool = False) -> None:
        """`started`: the client was told before that it has begun."""
        self._send = send
        self._id = request_id
        self._message = message
        self._started = started
        self._text: list[str] = []
        self._characters = 0
        self.ended = False
        self.scope = trio.CancelScope()
        """Cancelled when the answer grows over `MAX_REPLY_CHARACTERS`."""

    def emit(self, event: Event) -> None:
        """Send what the client should see of the event."""
        if isinstance(event, Delta):
            self._on_delta(event)
        elif isinstance(event, Accepted) and self._message.stream and not self._started:
            self._send("inference_started", **self._about(), node=event.node, resume_token=event.resume_token or None)
        elif isinstance(event, Done):
            self._on_done(event)

    def fail(self, error: MeshError) -> None:
        """The request ended badly."""
        self.ended = True
        self._send("inference_error", request_id=self._id, **error_body(error))

    def _about(self) -> dict[str, str]:
        return {"request_id": self._id, "model": self._message.model, "task": self._message.task}

    def _on_delta(self, event: Delta) -> None:
        if self._message.stream:
            self._send("inference_chunk", request_id=self._id, chunk=event.text, index=event.offset, tokens=len(event.token_ids))
        else:
            self._collect(event.text)

    def _collect(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_REPLY_CHARACTERS:
            self.scope.cancel()
        else:
            self._text.append(text)

    def _on_done(self, event: Done) -> None:
        if self.scope.cancel_called:
            return
        self.ended = True
        usage = event.usage
        total = usage.prompt_tokens + usage.completion_tokens
        ending: dict[str, Any] = {
            "finish_reason": event.finish_reason,
            "usage": {**msgspec.to_builtins(usage), "total_tokens": total},
            "performance": event.performance.rounded(),
        }
        if not event.exact:
            ending["resume"] = "approximate"
        if self._message.stream:
            self._send("inference_complete", request_id=self._id, **ending)
        else:
            self._send("inference_result", **self._about(), result={"text": "".join(self._text), **ending})
