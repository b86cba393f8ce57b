"""What a client wishes beside the request itself: request headers of ours.

A header that is not understood is a 400 that names it: it would be worse to do something else than was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from mesh.http.message import Request
    from mesh.messages.inference import InferenceRequest

RESUME = "x-infermesh-resume"
HEDGE = "x-infermesh-hedge"
PRIORITY = "x-infermesh-priority"
DEADLINE = "x-infermesh-deadline-ms"
MAX_PRIORITY = 100
MAX_DEADLINE = 24 * 3_600_000
"""Milliseconds."""


def as_headers_say(request: Request, inference: InferenceRequest) -> InferenceRequest:
    """The request with what its headers wish, and with the address it came from. Raises BadRequest."""
    headers = request.headers
    wishes: dict[str, Any] = {"client": request.client}
    if (text := headers.get(RESUME)) is not None:
        wishes["resume"] = _switch(RESUME, text)
    if (text := headers.get(HEDGE)) is not None:
        wishes["hedge"] = _switch(HEDGE, text)
    if (text := headers.get(PRIORITY)) is not None:
        wishes["priority"] = _whole(PRIORITY, text, -MAX_PRIORITY, MAX_PRIORITY)
    if (text := headers.get(DEADLINE)) is not None:
        wishes["deadline_ms"] = _whole(DEADLINE, text, 1, MAX_DEADLINE)
    return msgspec.structs.replace(inference, **wishes)


def _switch(name: str, text: str) -> bool:
    if (wish := text.lower()) not in ("on", "off"):
        raise BadRequest(f"the header {name} is on or off, not {text[:32]!r}", param=name)
    return wish == "on"


def _whole(name: str, text: str, least: int, most: int) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    raise BadRequest(f"the header {name} is a whole number from {least} to {most}, not {text[:32]!r}", param=name)
