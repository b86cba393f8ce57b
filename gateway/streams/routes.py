"""`GET /v1/streams`: an SSE stream from where its reader lost it, at whatever gateway of the mesh.

1. The reader shows the `id` of the last event that it got, as browsers do by themselves: `Last-Event-ID: TOKEN:TOKENS`.
2. What follows is what would have followed there, in the same shape, each event once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.streams.token import parse_event_id
from mesh.errors import BadRequest
from mesh.http.message import StreamingResponse
from mesh.openai.event_stream import EventStream
from mesh.openai.wording import Wording

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.streams.pick_up import FoundStream, Streams
    from mesh.http.message import Request, StreamWriter
    from mesh.http.router import Router


class StreamRoutes:
    """The route. `tenant` tells on whose behalf a request comes."""

    def __init__(self, streams: Streams, tenant: Callable[[Request], str]) -> None:
        self._streams = streams
        self._tenant = tenant

    def mount(self, router: Router) -> None:
        """Add it."""
        router.add("GET", "/v1/streams", self._resume)

    async def _resume(self, request: Request) -> StreamingResponse:
        marker = request.headers.get("last-event-id")
        if not marker:
            raise BadRequest(
                "say where to go on: the header Last-Event-ID with the id of the last event that came",
                code="missing_event_id",
                param="Last-Event-ID",
            )
        token, tokens = parse_event_id(marker)
        found = await self._streams.find(token, tokens, tenant=self._tenant(request))

        async def produce(writer: StreamWriter) -> None:
            await _stream(found, writer, tokens).run(found, found.request)

        return StreamingResponse(produce, headers={"cache-control": "no-cache", "x-request-id": found.request.request_id})


def _stream(found: FoundStream, writer: StreamWriter, tokens: int) -> EventStream:
    request, reader = found.request, found.request.reader
    task: Literal["chat", "completion"] = "chat" if request.task == "chat" else "completion"
    asked = msgspec.structs.replace(request, model=reader.model) if reader and reader.model else request
    wording = Wording(task, asked, include_usage=reader is not None and reader.include_usage)
    wording.go_on(found.kept.characters, found.kept.ended)
    return EventStream(wording, writer, tokens=sum(map(len, request.prior)), opened=tokens > 0)
