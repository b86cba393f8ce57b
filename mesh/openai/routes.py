"""OpenAI's routes over any InferenceService.

1. Which node answers, and whether a model is available, is the service's business: it raises, the routes translate.
2. A stream's head waits for the first text (or the end): until then a failure is an ordinary error answer with its own status.
3. Every event of a stream is handed to the connection in the very call that brought it.
4. `x-request-id` in the answer is ours; what the client calls its request plays no role in what the request is.
"""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from mesh.errors import BackendFailed
from mesh.http.errors import error_response, public_error
from mesh.http.message import Response, StreamingResponse, StreamWriter
from mesh.messages.inference import Accepted, Delta, Done, Event, InferenceRequest, Reader
from mesh.openai.collected import CollectedChoice
from mesh.openai.embeddings import EmbeddingRoutes
from mesh.openai.errors import model_not_found
from mesh.openai.event_stream import EventStream, ended, resume_headers
from mesh.openai.parse import parse_chat, parse_completion
from mesh.openai.reply_headers import Headers, ignored_header, node_headers
from mesh.openai.translate import Identity, chat_inference, completion_inference, model_object
from mesh.openai.wishes import as_headers_say
from mesh.openai.wording import Wording

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.http.message import Request
    from mesh.http.router import Router
    from mesh.messages.record import ModelEntry
    from mesh.openai.types import ChatRequest, CompletionRequest
    from mesh.service import InferenceService

MAX_REPLY_CHARACTERS = 8 * 1024 * 1024
"""In one answer that is not streamed: a node that talks without end must not fill our memory."""
SEED = "x-infermesh-seed"
_SEED_BITS = 53
"""Of a seed that we draw: a client whose numbers are doubles can send it back."""


class OpenAIRoutes:
    """POST /v1/chat/completions, /v1/completions and /v1/embeddings, GET /v1/models, /models and /v1/models/{id}."""

    def __init__(self, service: InferenceService, catalog: Callable[[], list[ModelEntry]]) -> None:
        self._service = service
        self._catalog = catalog

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/v1/chat/completions", self._chat)
        router.add("POST", "/v1/completions", self._complete)
        EmbeddingRoutes(self._service, as_headers_say).mount(router)
        router.add("GET", "/v1/models", self._models)
        router.add("GET", "/models", self._models)
        router.add("GET", "/v1/models/{id...}", self._model)

    async def _models(self, _request: Request) -> Response:
        by_id = {entry.id: entry for entry in self._catalog()}
        return Response.json({"object": "list", "data": [model_object(by_id[name]) for name in sorted(by_id)]})

    async def _model(self, request: Request) -> Response:
        wanted = request.params["id"]
        entries = self._catalog()
        for entry in entries:
            if entry.id == wanted:
                return Response.json(model_object(entry))
        raise model_not_found(wanted, (entry.id for entry in entries))

    async def _chat(self, request: Request) -> Response | StreamingResponse:
        parsed = parse_chat(request)
        inference = as_headers_say(request, chat_inference(parsed.body, _identity()))
        return await self._answer("chat", parsed.body, inference, parsed.ignored)

    async def _complete(self, request: Request) -> Response | StreamingResponse:
        parsed = parse_completion(request)
        inference = as_headers_say(request, completion_inference(parsed.body, _identity()))
        return await self._answer("completion", parsed.body, inference, parsed.ignored)

    async def _answer(
        self,
        task: Literal["chat", "completion"],
        body: ChatRequest | CompletionRequest,
        inference: InferenceRequest,
        ignored: list[str],
    ) -> Response | StreamingResponse:
        headers = {"x-request-id": inference.request_id, **ignored_header(ignored)}
        if body.seed is None:
            headers[SEED] = str(inference.seed)
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        inference = msgspec.structs.replace(inference, reader=Reader(model=inference.model, include_usage=include_usage))
        wording = Wording(task, inference, include_usage=include_usage)
        if not body.stream:
            return await self._whole(inference, wording, headers)

        async def produce(writer: StreamWriter) -> None:
            await EventStream(wording, writer).run(self._service, inference)

        return StreamingResponse(produce, headers={"cache-control": "no-cache", **headers})

    async def _whole(self, inference: InferenceRequest, wording: Wording, headers: Headers) -> Response:
        collected = _Collected(inference.n)
        try:
            done = await collected.run(self._service, inference)
        except Exception as error:
            public = public_error(error)
            if public is None:
                raise
            return error_response(public, {**headers, **collected.headers})
        told = {**headers, **collected.headers, **resume_headers(done)}
        return Response.json(wording.reply(collected.choices, done), headers=told)


class _Collected:
    """The events of a request that is answered in one piece."""

    def __init__(self, choices: int) -> None:
        self.headers: Headers = {}
        self.choices = [CollectedChoice() for _ in range(choices)]
        self._done: Done | None = None
        self._scope = trio.CancelScope()

    async def run(self, service: InferenceService, inference: InferenceRequest) -> Done:
        with self._scope:
            await service.infer(inference, self._take)
        if self._scope.cancelled_caught:
            raise BackendFailed(
                f"the answer grew over {MAX_REPLY_CHARACTERS} characters; ask for fewer tokens", code="reply_too_large"
            )
        return ended(self._done)

    def _take(self, event: Event) -> None:
        match event:
            case Accepted():
                self.headers = node_headers(event)
            case Delta():
                self._grow(event)
            case Done():
                self._done = event
            case _:
                pass

    def _grow(self, delta: Delta) -> None:
        if delta.choice >= len(self.choices):
            return
        self.choices[delta.choice].add(delta)
        if sum(choice.size for choice in self.choices) > MAX_REPLY_CHARACTERS:
            self._scope.cancel()


def _identity() -> Identity:
    return Identity(request_id=str(uuid.uuid4()), created=int(time.time()), seed=secrets.randbits(_SEED_BITS))
