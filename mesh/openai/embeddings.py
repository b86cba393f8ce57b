"""POST /v1/embeddings over any InferenceService.

Each part is put into words when it comes, so that no large answer keeps the others waiting.
"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Literal

import msgspec

from mesh.embedding import check_dimensions, embed, inputs_of
from mesh.errors import BadRequest
from mesh.http.message import Response
from mesh.messages.inference import Accepted, InferenceRequest
from mesh.openai.parse import parse_body
from mesh.openai.reply_headers import ignored_header, node_headers
from mesh.vectors import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.http.message import Request
    from mesh.http.router import Router
    from mesh.service import InferenceService

Encoding = Literal["float", "base64"]


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Encoding | None = None
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
        if not body.model:
            raise BadRequest("model is empty; GET /v1/models lists what there is", param="model")
        inference = self._prepare(request, embedding_inference(body.model, body.dimensions))
        data: list[msgspec.Raw] = []

        async def take(vectors: list[bytes], _accepted: Accepted) -> None:
            data.extend([_worded(vector, place, body.encoding_format) for place, vector in enumerate(vectors, len(data))])

        embedded = await embed(self._service, inference, inputs_of(body.input), take)
        reply = {"object": "list", "data": data, "model": body.model, "usage": embedded.usage}
        headers = {"x-request-id": inference.request_id, **ignored_header(ignored), **node_headers(embedded.accepted)}
        return Response.json(reply, headers=headers)


def embedding_inference(model: str, dimensions: int | None) -> InferenceRequest:
    """The request of ours, but for its inputs. Raises BadRequest."""
    check_dimensions(dimensions)
    return InferenceRequest(
        request_id=str(uuid.uuid4()),
        model=model,
        task="embedding",
        dimensions=dimensions,
        seed=secrets.randbits(63),
        stream=False,
        created=int(time.time()),
    )


def encoded(vector: bytes, encoding: Encoding | None) -> str | list[float]:
    """A vector as JSON holds it."""
    return base64.b64encode(vector).decode() if encoding == "base64" else unpack(vector)


def _worded(vector: bytes, index: int, encoding: Encoding | None) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": encoded(vector, encoding)}))
