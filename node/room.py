"""How many tokens a request may still generate, whatever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest


def new_tokens(request: InferenceRequest, *, prompt_tokens: int, context_length: int) -> int:
    """The most tokens to generate, at least one: the strictest of context, `max_length` and `max_tokens`. Raises BadRequest."""
    if prompt_tokens >= context_length:
        raise BadRequest(
            f"the prompt has {prompt_tokens} tokens and the model's context only {context_length}; shorten it",
            code="context_length_exceeded",
            param="messages" if request.task == "chat" else "prompt",
        )
    if request.max_length is not None and prompt_tokens >= request.max_length:
        raise BadRequest(
            f"the prompt has {prompt_tokens} tokens, and max_length counts them too: {request.max_length} leaves no room for an "
            "answer; raise it, or use max_new_tokens",
            param="max_length",
        )
    limits = (context_length - prompt_tokens, request.max_tokens, request.max_length and request.max_length - prompt_tokens)
    return min(limit for limit in limits if limit is not None)


def too_long(index: int, tokens: int, context_length: int) -> BadRequest:
    """The error for an input that cannot be embedded whole; nothing is cut off silently."""
    return BadRequest(
        f"input {index} has {tokens} tokens and the model takes {context_length}; shorten it or embed it in pieces",
        code="context_length_exceeded",
        param="input",
    )
