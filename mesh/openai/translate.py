"""Between OpenAI's shapes and ours. Pure: no I/O, no clock, no chance.

What is answered is worded in `mesh.openai.wording`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.messages.inference import InferenceRequest
from mesh.openai.forms import grammar_of
from mesh.openai.parse import biases, one_prompt
from mesh.openai.tools import tool_choice
from mesh.openai.types import CHAT_DEFAULTS, COMPLETION_DEFAULTS, ChatMessage, ChatRequest, CompletionRequest, Defaults, Tool

if TYPE_CHECKING:
    from mesh.messages.inference import Task
    from mesh.messages.record import ModelEntry

MAX_AFFINITY = 256
"""Characters of it that count."""
_SEED_MASK = 2**63 - 1


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway adds to a request. `created` in Unix seconds; `seed` counts when the client gave none."""

    request_id: str
    created: int
    seed: int


def chat_inference(body: ChatRequest, identity: Identity) -> InferenceRequest:
    """The request of ours."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    messages = [_message(message) for message in body.messages]
    made = _inference(body, identity, CHAT_DEFAULTS, task="chat", messages=messages, max_tokens=limit)
    choice, name = tool_choice(body)
    return msgspec.structs.replace(
        made,
        logprobs=_or(body.top_logprobs, 0) if body.logprobs else None,
        tools=[_tool(tool) for tool in body.tools or []],
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=_or(body.parallel_tool_calls, True),
    )


def _tool(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": msgspec.to_builtins(tool.function)}


def completion_inference(body: CompletionRequest, identity: Identity) -> InferenceRequest:
    """The request of ours."""
    prompt = one_prompt(body.prompt)
    made = _inference(body, identity, COMPLETION_DEFAULTS, task="completion", prompt=prompt, max_tokens=body.max_tokens)
    logprobs = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    return msgspec.structs.replace(made, logprobs=logprobs, echo=bool(body.echo))


def _inference(
    body: ChatRequest | CompletionRequest,
    identity: Identity,
    defaults: Defaults,
    *,
    task: Task,
    max_tokens: int | None,
    messages: list[dict[str, Any]] | None = None,
    prompt: str | list[int] | None = None,
) -> InferenceRequest:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return InferenceRequest(
        request_id=identity.request_id,
        created=identity.created,
        model=body.model,
        task=task,
        messages=messages,
        prompt=prompt,
        max_tokens=_or(max_tokens, defaults.max_tokens),
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=max(0, _or(body.top_k, defaults.top_k)),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=biases(body),
        n=_or(body.n, 1),
        min_tokens=_or(body.min_tokens, 0),
        ignore_eos=bool(body.ignore_eos),
        grammar=grammar_of(body),
        seed=_or(body.seed, identity.seed) & _SEED_MASK,
        stop=stop or [],
        stream=bool(body.stream),
        affinity=(body.prompt_cache_key or body.user or "")[:MAX_AFFINITY],
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _message(message: ChatMessage) -> dict[str, Any]:
    """OpenAI's shape with the text in one piece. `developer` is `system`: templates know no other name for it."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text or "" for part in content)
    fields: dict[str, Any] = msgspec.to_builtins(message)
    role = "system" if message.role == "developer" else message.role
    return {**fields, "role": role, "content": content}


def model_object(entry: ModelEntry) -> dict[str, Any]:
    """A model as the API lists it."""
    return {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "infermesh"}
