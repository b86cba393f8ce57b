"""What a request may ask for that a service which only makes text cannot give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.messages.inference import InferenceRequest

Extra = Literal["n", "logprobs", "response_format", "tool_choice", "echo"]
EXTRAS: tuple[Extra, ...] = ("n", "logprobs", "response_format", "tool_choice", "echo")


def refuse(request: InferenceRequest, who: str, extras: Iterable[Extra] = EXTRAS) -> None:
    """Raises BadRequest naming the first of `extras` that the request asks for; `who` cannot give it."""
    for name in extras:
        if _asked(request, name):
            raise BadRequest(
                f"{who} cannot honour {name}; leave it out, or use another model", code="unsupported_parameter", param=name
            )


def _asked(request: InferenceRequest, name: Extra) -> bool:
    match name:
        case "n":
            return request.n != 1
        case "logprobs":
            return request.logprobs is not None
        case "response_format":
            return request.grammar is not None
        case "tool_choice":
            return request.tool_choice == "required"
        case "echo":
            return request.echo
