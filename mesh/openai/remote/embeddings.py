"""Embeddings of an OpenAI-compatible server: the request as its body, its answer as `Done`. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BackendFailed
from mesh.messages.inference import Done, Performance, Usage
from mesh.vectors import FLOAT_SIZE, MAX_BYTES, pack

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Reply(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


def embeddings_body(request: InferenceRequest) -> dict[str, Any]:
    """The request in OpenAI's shape."""
    body: dict[str, Any] = {"model": request.model, "input": request.inputs or [], "encoding_format": "float"}
    return body if request.dimensions is None else {**body, "dimensions": request.dimensions}


def embeddings_done(request: InferenceRequest, body: bytes, *, seconds: float) -> Done:
    """The answer, after `seconds`. Raises BackendFailed unless it has one vector for each input."""
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendFailed("the service answered in a shape that is not OpenAI's", code="bad_answer") from error
    vectors = [one.embedding for one in sorted(reply.data, key=lambda one: one.index)]
    if len(vectors) != len(request.inputs or []) or not all(vectors):
        raise BackendFailed("the service did not answer with one vector for each input", code="bad_embeddings")
    if sum(map(len, vectors)) * FLOAT_SIZE > MAX_BYTES:
        raise BackendFailed(f"the service answered with more than {MAX_BYTES} bytes of vectors", code="bad_embeddings")
    return Done(
        finish_reason="stop",
        usage=Usage((reply.usage or _Usage()).prompt_tokens, 0),
        performance=Performance(1000 * seconds, 0.0, 0.0, 0.0, len(vectors)),
        embeddings=[pack(vector) for vector in vectors],
    )
