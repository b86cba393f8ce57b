"""Going on with an answer of which only the text is known: what a server that can is asked. Pure.

1. A chat's text so far is its last message, the assistant's; that of a completion stands behind the prompt.
2. What was given out counts against the request's limits: a piece of text stands for a token.
3. It is not what the first server would have said: the text may be cut into other tokens, and its sampling begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest, Said

FINAL_MESSAGE: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
"""How vLLM and SGLang are told; llama.cpp's server goes on with a last message of the assistant by itself."""


def can_be_continued(request: InferenceRequest) -> bool:
    """Whether the request leaves room for it: one answer in free text, which the client has not begun itself."""
    if request.n != 1 or request.grammar is not None or request.tool_choice == "required" or request.echo:
        return False
    if request.task == "chat":
        return bool(request.messages) and request.messages is not None and request.messages[-1].get("role") != "assistant"
    return request.task == "completion" and isinstance(request.prompt, str)


def behind(request: InferenceRequest) -> InferenceRequest:
    """The request as its server is asked: with what was given out already in it. As it is when nothing was."""
    said = request.said
    if said is None:
        return request
    changes: dict[str, Any] = {"min_tokens": max(0, request.min_tokens - said.pieces)}
    if request.max_tokens is not None:
        changes["max_tokens"] = max(1, request.max_tokens - said.pieces)
    return msgspec.structs.replace(request, **changes, **_with_text(request, said))


def _with_text(request: InferenceRequest, said: Said) -> dict[str, Any]:
    if request.task == "chat":
        return {"messages": [*(request.messages or []), {"role": "assistant", "content": said.text}]}
    return {"prompt": f"{request.prompt}{said.text}"}
