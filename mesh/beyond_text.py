"""What a request may ask for that a service which only makes text cannot give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mesh.errors import BadRequest, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.messages.inference import InferenceRequest

Extra = Literal["n", "logprobs", "response_format", "tool_choice", "echo"]
CANNOT_GO_ON = "cannot_go_on"
EXTRAS: tuple[Extra, ...] = ("n", "logprobs", "response_format", "tool_choice", "echo")


def refuse(request: InferenceRequest, who: str, extras: Iterable[Extra] = EXTRAS) -> None:
    """Raises BadRequest naming the first of `extras` that the request asks for; `who` cannot give it."""
    for name in extras:
        if _asked(request, name):
            raise BadRequest(
                f"{who} cannot honour {name}; leave it out, or use another model", code="unsupported_parameter", param=name
            )


def refuse_begun(request: InferenceRequest, who: str, *, behind_text: bool = False) -> None:
    """Raises Unavailable for an answer that another node has begun. `behind_text`: `who` can go on where its text is known."""
    if any(request.prior) or (request.said is not None and not behind_text):
        raise Unavailable(
            f"{who} cannot go on with an answer that was begun elsewhere; send the request again", code=CANNOT_GO_ON
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
