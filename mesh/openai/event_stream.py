"""One answer as server-sent events, written as they come.

1. Every event is handed to the connection in the very call that brought it.
2. Where the answer can be picked up again, each chunk carries `id: TOKEN:TOKENS`: the token, and how many tokens came by then.
3. An error after the first event is an event of its own, and the connection ends without the last chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import BackendFailed
from mesh.http.errors import INTERNAL, public_error
from mesh.messages.inference import Accepted, Delta, Done
from mesh.openai.errors import error_event
from mesh.openai.reply_headers import node_headers
from mesh.service import paced

if TYPE_CHECKING:
    from mesh.http.message import StreamWriter
    from mesh.messages.inference import Event, InferenceRequest
    from mesh.openai.wording import Wording
    from mesh.service import InferenceService

RESUME = "x-infermesh-resume"
_NEXT = b"\n\ndata: {"


class EventStream:
    """One request's events. `tokens` were written before, over all choices; `opened`: so was what a stream begins with."""

    def __init__(self, wording: Wording, writer: StreamWriter, *, tokens: int = 0, opened: bool = False) -> None:
        self._wording = wording
        self._writer = writer
        self._tokens = tokens
        self._opened = opened
        self._started = False
        self._id = b""
        self._done: Done | None = None

    async def run(self, service: InferenceService, inference: InferenceRequest) -> None:
        """Write the answer to the request. Raises what the service raises, after the event that tells it."""
        try:
            await service.infer(inference, paced(self._take, self._writer.room))
            ended(self._done)
        except Exception as error:
            if self._started and self._done is None:
                self._writer.write(error_event(public_error(error) or INTERNAL))
            raise

    def _take(self, event: Event) -> None:
        match event:
            case Accepted():
                self._writer.headers.update(node_headers(event))
                self._id = f"id: {event.resume_token}:".encode() if event.resume_token else b""
            case Delta():
                opening = b"" if self._started else self._opening()
                self._tokens += len(event.token_ids)
                self._writer.write(opening + self._marked(self._wording.chunk(event)))
            case Done():
                self._done = event
                opening = b"" if self._started else self._opening()
                self._writer.write(opening + self._marked(self._wording.closing(event)))
            case _:
                pass

    def _opening(self) -> bytes:
        self._started = True
        if self._opened:
            return b""
        self._opened = True
        return self._marked(self._wording.opening())

    def _marked(self, events: bytes) -> bytes:
        """Each event with its id: where a reader that lost the rest goes on."""
        if not self._id or not events:
            return events
        mark = b"%s%d\n" % (self._id, self._tokens)
        # JSON has no raw line ends, so this is where events begin.
        return mark + events.replace(_NEXT, b"\n\n" + mark + b"data: {")


def ended(done: Done | None) -> Done:
    """How the answer ended. Raises BackendFailed when it did not."""
    if done is None:
        raise BackendFailed("the answer ended without saying that it was complete; try again")
    return done


def resume_headers(done: Done) -> dict[str, str]:
    """Says so when another node went on with the answer and computes differently."""
    return {} if done.exact else {RESUME: "approximate"}
