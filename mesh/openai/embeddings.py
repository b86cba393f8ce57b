"""POST /v1/embeddings over any InferenceService.

1. An answer has to fit into one event, so many inputs are asked for in several requests, one after another, and put together.
2. Each part is put into words when it comes, so that no large answer keeps the others waiting; all vectors together are bounded.
3. Vectors can be compared only when they were computed alike: parts from nodes of different `numerics` are an error, no answer.
"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Literal

import msgspec

from mesh.errors import BackendFailed, BadRequest, Unavailable
from mesh.http.message import Response
from mesh.messages.inference import Accepted, Done, Event, InferenceRequest
from mesh.openai.parse import parse_body
from mesh.openai.reply_headers import ignored_header, node_headers
from mesh.openai.types import INT32_MAX
from mesh.vectors import FLOAT_SIZE, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mesh.http.message import Request
    from mesh.http.router import Router
    from mesh.service import InferenceService

MAX_INPUTS = 2048
MOST_AT_ONCE = 64
"""Inputs in one request of ours: 64 vectors of 12,288 numbers fit into an event."""
MOST_SIZE_AT_ONCE = 32 * 1024
"""Characters or token ids in one request of ours, beyond its first input: a node gets through it well within its time limit."""
MAX_VECTOR_BYTES = 16 * 1024 * 1024
"""Of all vectors in one answer, before they are put into words: 2,048 of 2,048 numbers."""
MAX_DIMENSIONS = 65_536


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class EmbeddingRoutes:
    """The route. `prepare` adds to each request what the HTTP request's headers say."""

    def __init__(self, service: InferenceService, prepare: Callable[[Request, InferenceRequest], InferenceRequest]) -> None:
        self._service = service
        self._prepare = prepare

    def mount(self, router: Router) -> None:
        """Add the route."""
        router.add("POST", "/v1/embeddings", self._embed)

    async def _embed(self, request: Request) -> Response:
        body, ignored = parse_body(request, EmbeddingRequest, "input")
        inputs = _checked(body)
        first = InferenceRequest(
            request_id=str(uuid.uuid4()),
            model=body.model,
            task="embedding",
            dimensions=body.dimensions,
            seed=secrets.randbits(63),
            stream=False,
            created=int(time.time()),
        )
        first = self._prepare(request, first)
        gathered = _Gathered(body)
        for part in _parts(inputs):
            asked = msgspec.structs.replace(
                first, inputs=part, request_id=str(uuid.uuid4()) if gathered.data else first.request_id
            )
            await gathered.ask(self._service, asked)
        headers = {"x-request-id": first.request_id, **ignored_header(ignored), **node_headers(gathered.accepted)}
        return Response.json(gathered.reply(), headers=headers)


class _Gathered:
    """What the requests that were sent have brought together."""

    def __init__(self, body: EmbeddingRequest) -> None:
        self.data: list[msgspec.Raw] = []
        self.accepted = Accepted()
        self._body = body
        self._tokens = 0
        self._bytes = 0
        self._vector_size = 0
        self._computed_by: tuple[str, str] | None = None
        self._done: Done | None = None

    async def ask(self, service: InferenceService, request: InferenceRequest) -> None:
        """Send one request and add its vectors. Raises MeshError."""
        self._done = None
        await service.infer(request, self._take)
        self._add(self._done, len(request.inputs or []))

    def reply(self) -> dict[str, object]:
        """What the client gets."""
        return {
            "object": "list",
            "data": self.data,
            "model": self._body.model,
            "usage": {"prompt_tokens": self._tokens, "total_tokens": self._tokens},
        }

    def _take(self, event: Event) -> None:
        match event:
            case Accepted():
                self.accepted = event
            case Done():
                self._done = event
            case _:
                pass

    def _add(self, done: Done | None, count: int) -> None:
        vectors = (done.embeddings if done is not None else None) or []
        size = self._vector_size or (len(vectors[0]) if vectors else 0)
        whole = size > 0 and size % FLOAT_SIZE == 0 and all(len(vector) == size for vector in vectors)
        if done is None or len(vectors) != count or not whole:
            raise BackendFailed("the node did not answer with one vector for each input; try again", code="bad_embeddings")
        accepted = self.accepted
        by = (accepted.numerics, "" if accepted.numerics else accepted.node)
        if self._computed_by not in (None, by):
            raise Unavailable(
                "nodes that compute differently answered parts of this request; send it again, or fewer inputs at once",
                code="mixed_numerics",
                retry_after=1,
            )
        self._computed_by = by
        self._tokens += done.usage.prompt_tokens
        self._vector_size = size
        self._bytes += size * count
        if self._bytes > MAX_VECTOR_BYTES:
            raise BadRequest(
                f"the vectors take more than {MAX_VECTOR_BYTES} bytes; send fewer inputs at once, or ask for fewer dimensions",
                code="answer_too_large",
                param="input",
            )
        self.data += [self._worded(vector, len(self.data) + place) for place, vector in enumerate(vectors)]

    def _worded(self, vector: bytes, index: int) -> msgspec.Raw:
        embedding = base64.b64encode(vector).decode() if self._body.encoding_format == "base64" else unpack(vector)
        return msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": embedding}))


def _checked(body: EmbeddingRequest) -> list[str | list[int]]:
    """The inputs, each a text or its token ids. Raises BadRequest."""
    if not body.model:
        raise BadRequest("model is empty; GET /v1/models lists what there is", param="model")
    if body.dimensions is not None and not 1 <= body.dimensions <= MAX_DIMENSIONS:
        raise BadRequest(
            f"dimensions is {body.dimensions}; it must be between 1 and {MAX_DIMENSIONS}", param="dimensions", code="out_of_range"
        )
    given = [body.input] if isinstance(body.input, str) else body.input
    inputs: list[str | list[int]] = []
    if given and all(isinstance(one, int) for one in given):
        inputs = [[one for one in given if isinstance(one, int)]]
    else:
        inputs = [one for one in given if not isinstance(one, int)]
        if len(inputs) != len(given):
            raise BadRequest("input mixes token ids with other things; give texts, or lists of token ids", param="input")
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise BadRequest(f"input has {len(inputs)} entries; 1 to {MAX_INPUTS} are allowed", param="input", code="out_of_range")
    for index, one in enumerate(inputs):
        _check_input(one, "input" if len(inputs) == 1 else f"input[{index}]")
    return inputs


def _check_input(one: str | list[int], path: str) -> None:
    if not one:
        raise BadRequest(f"{path} is empty; there is nothing to embed", param=path)
    if isinstance(one, list) and not all(0 <= token <= INT32_MAX for token in one):
        raise BadRequest(f"{path} holds a token id that is not between 0 and {INT32_MAX}", param=path)


def _parts(inputs: list[str | list[int]]) -> Iterator[list[str | list[int]]]:
    part: list[str | list[int]] = []
    size = 0
    for one in inputs:
        if part and (len(part) >= MOST_AT_ONCE or size + len(one) > MOST_SIZE_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(one)
        size += len(one)
    yield part
