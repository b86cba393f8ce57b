"""What can share an accelerator: a model that can be woken and put to sleep.

1. `wake` returns when the model has produced a token, and raises Unavailable, saying why, when it cannot. It is idempotent.
2. `sleep` returns when the accelerator is free for another model. It is idempotent.
3. Both may be cancelled, and then leave something that `sleep` can still clear away.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

import trio

from mesh.errors import BadRequest, MeshError, NotFound, Unavailable
from mesh.messages.inference import Delta, Done, InferenceRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from mesh.messages.inference import Event
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.service import Emit
    from node.backends.base import BackendStatus

PROOF_SECONDS = 60.0
"""How long the first token may take from a model that says that it is awake."""


class Switchable(Protocol):
    """See the head of this file. Beyond that it is what a `Backend` is."""

    changed: Callable[[], None]

    @property
    def gives_tokens(self) -> bool:
        """As a backend's."""

    @property
    def entry(self) -> ModelEntry:
        """What is known of the model; its state only counts while it is awake."""

    @property
    def load(self) -> ModelLoad:
        """How busy it is."""

    @property
    def memory(self) -> int:
        """Bytes that it takes of the accelerator while it is awake, as stated or as measured last; 0 = nobody knows."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own whatever it starts, until cancelled; `started()` at once when it is asleep."""

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request; it is only asked while it is awake."""

    async def wake(self) -> None:
        """Get ready to answer. No time limit but its own."""

    async def sleep(self) -> None:
        """Give the accelerator back. No time limit but its own. Raises Unavailable when that failed."""

    async def alive(self) -> bool:
        """Whether it is awake and well, also by somebody else's doing. No time limit but its own."""

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""


async def prove_awake(
    model: str, infer: Callable[[InferenceRequest, Emit], Awaitable[None]], *, tasks: Collection[str] = ("completion", "chat")
) -> None:
    """Have one token generated, or a vector made. Raises Unavailable, saying why, when none comes within PROOF_SECONDS."""
    cause: MeshError | None = None
    with trio.move_on_after(PROOF_SECONDS):
        for request in _proofs(model, tasks):
            try:
                if await _generates(request, infer):
                    return
            except (BadRequest, NotFound) as error:
                cause = error  # it may have no chat template, or no plain completions
            except MeshError as error:
                cause = error
                break
    why = cause.message if cause is not None else "no token came"
    raise Unavailable(f"{model} says that it is awake, but generates nothing: {why}", code="wake_failed")


def _proofs(model: str, tasks: Collection[str]) -> Iterator[InferenceRequest]:
    if "completion" in tasks:
        yield InferenceRequest(
            request_id=f"wake-{uuid.uuid4()}", model=model, task="completion", prompt="Hello", max_tokens=1, temperature=0
        )
    if "chat" in tasks:
        yield InferenceRequest(
            request_id=f"wake-{uuid.uuid4()}",
            model=model,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=1,
            temperature=0,
        )
    if not {"completion", "chat"} & {*tasks}:
        yield InferenceRequest(request_id=f"wake-{uuid.uuid4()}", model=model, task="embedding", inputs=["Hello"])


async def _generates(request: InferenceRequest, infer: Callable[[InferenceRequest, Emit], Awaitable[None]]) -> bool:
    generated = False

    def emit(event: Event) -> None:
        nonlocal generated
        match event:
            case Delta():
                generated = True
            case Done(usage=usage, embeddings=vectors):
                generated = generated or usage.completion_tokens > 0 or bool(vectors)
            case _:
                pass

    await infer(request, emit)
    return generated
