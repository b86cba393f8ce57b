"""Texts to vectors over any InferenceService, however many there are.

1. An answer has to fit into one event, so many inputs are asked for in several requests, one after another.
2. Each part is handed on when it comes, and the next one is asked for when it was taken; all vectors together are bounded.
3. Vectors can be compared only when they were computed alike: parts from nodes of different `numerics` are an error, no answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, BadRequest, Unavailable
from mesh.messages.inference import Accepted, Done, Event, InferenceRequest
from mesh.vectors import FLOAT_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.service import InferenceService

Input = str | list[int]
"""A text, or its token ids."""
Take = Callable[[list[bytes], Accepted], Awaitable[None]]
"""Is given the next vectors, and who made them."""

MAX_INPUTS = 2048
MOST_AT_ONCE = 64
"""Inputs in one request of ours: 64 vectors of 12,288 numbers fit into an event."""
MOST_SIZE_AT_ONCE = 32 * 1024
"""Characters or token ids in one request of ours, beyond its first input: a node gets through it well within its time limit."""
MAX_VECTOR_BYTES = 16 * 1024 * 1024
"""Of all vectors in one answer: 2,048 of 2,048 numbers."""
MAX_DIMENSIONS = 65_536
MAX_TOKEN = 2**31 - 1


def inputs_of(given: str | Sequence[str | int | list[int]], *, field: str = "input") -> list[Input]:
    """The inputs that were meant: one text, one list of token ids, or a list of either. Raises BadRequest, naming `field`."""
    several = [given] if isinstance(given, str) else list(given)
    inputs: list[Input] = []
    if several and all(isinstance(one, int) for one in several):
        inputs = [[one for one in several if isinstance(one, int)]]
    else:
        inputs = [one for one in several if not isinstance(one, int)]
        if len(inputs) != len(several):
            raise BadRequest(f"{field} mixes token ids with other things; give texts, or lists of token ids", param=field)
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise BadRequest(f"{field} has {len(inputs)} entries; 1 to {MAX_INPUTS} are allowed", param=field, code="out_of_range")
    for index, one in enumerate(inputs):
        _check_input(one, field if len(inputs) == 1 else f"{field}[{index}]")
    return inputs


def check_dimensions(dimensions: int | None) -> None:
    """Raises BadRequest."""
    if dimensions is not None and not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadRequest(
            f"dimensions is {dimensions}; it must be between 1 and {MAX_DIMENSIONS}", param="dimensions", code="out_of_range"
        )


async def embed(
    service: InferenceService, request: InferenceRequest, inputs: Sequence[Input], take: Take, *, field: str = "input"
) -> Embedded:
    """Ask for the vectors of all inputs, in their order; `request` says the rest. Raises MeshError, which names `field`."""
    embedding = _Embedding(service, take, field)
    started = trio.current_time()
    for place, part in enumerate(_parts(inputs)):
        request_id = request.request_id if place == 0 else str(uuid.uuid4())
        left = _left(request.deadline_ms, trio.current_time() - started)
        await embedding.ask(msgspec.structs.replace(request, inputs=part, request_id=request_id, deadline_ms=left))
    return Embedded(accepted=embedding.accepted, tokens=embedding.tokens)


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """What came beside the vectors: who answered last, and the tokens of all inputs."""

    accepted: Accepted
    tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts it."""
        return {"prompt_tokens": self.tokens, "total_tokens": self.tokens}


class _Embedding:
    """The requests that were sent for one answer."""

    def __init__(self, service: InferenceService, take: Take, field: str) -> None:
        self.accepted = Accepted()
        self.tokens = 0
        self._service = service
        self._take = take
        self._field = field
        self._bytes = 0
        self._vector_size = 0
        self._computed_by: tuple[str, str] | None = None
        self._done: Done | None = None

    async def ask(self, request: InferenceRequest) -> None:
        """Send one request and hand its vectors on. Raises MeshError."""
        self._done = None
        await self._service.infer(request, self._hear)
        vectors = self._checked(self._done, len(request.inputs or []))
        await self._take(vectors, self.accepted)

    def _hear(self, event: Event) -> None:
        match event:
            case Accepted():
                self.accepted = event
            case Done():
                self._done = event
            case _:
                pass

    def _checked(self, done: Done | None, count: int) -> list[bytes]:
        vectors = (done.embeddings if done is not None else None) or []
        size = self._vector_size or (len(vectors[0]) if vectors else 0)
        whole = size > 0 and size % FLOAT_SIZE == 0 and all(len(vector) == size for vector in vectors)
        if done is None or len(vectors) != count or not whole:
            raise BackendFailed("the node did not answer with one vector for each input; try again", code="bad_embeddings")
        self._check_comparable()
        self._vector_size = size
        self._check_size(size * count)
        self.tokens += done.usage.prompt_tokens
        return vectors

    def _check_comparable(self) -> None:
        accepted = self.accepted
        by = (accepted.numerics, "" if accepted.numerics else accepted.node)
        if self._computed_by not in (None, by):
            raise Unavailable(
                "nodes that compute differently answered parts of this request; send it again, or fewer inputs at once",
                code="mixed_numerics",
                retry_after=1,
            )
        self._computed_by = by

    def _check_size(self, more: int) -> None:
        self._bytes += more
        if self._bytes > MAX_VECTOR_BYTES:
            raise BadRequest(
                f"the vectors take more than {MAX_VECTOR_BYTES} bytes; send fewer inputs at once, or ask for fewer dimensions",
                code="answer_too_large",
                param=self._field,
            )


def _left(deadline_ms: int | None, seconds: float) -> int | None:
    """Of a deadline that the parts share. One that has passed stays one: who answers the next part refuses it."""
    return None if deadline_ms is None else max(1, deadline_ms - int(seconds * 1000))


def _check_input(one: Input, path: str) -> None:
    if not one:
        raise BadRequest(f"{path} is empty; there is nothing to embed", param=path)
    if isinstance(one, list) and not all(0 <= token <= MAX_TOKEN for token in one):
        raise BadRequest(f"{path} holds a token id that is not between 0 and {MAX_TOKEN}", param=path)


def _parts(inputs: Sequence[Input]) -> Iterator[list[Input]]:
    part: list[Input] = []
    size = 0
    for one in inputs:
        if part and (len(part) >= MOST_AT_ONCE or size + len(one) > MOST_SIZE_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(one)
        size += len(one)
    yield part
