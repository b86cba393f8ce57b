"""From a message of the WebSocket to a request. Pure but for ids, seeds and the clock."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gateway.socket_messages import TEXT_EMBEDDING, TEXT_GENERATION, Inference
from mesh.embedding import inputs_of
from mesh.errors import BadRequest
from mesh.messages.inference import ANONYMOUS, InferenceRequest, Reader
from mesh.openai.embeddings import embedding_inference

if TYPE_CHECKING:
    from gateway.socket_messages import Parameters
    from mesh.embedding import Input

T = TypeVar("T")

CHAT_TOKENS = 512
COMPLETION_TOKENS = 16


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and from which address."""

    tenant: str = ANONYMOUS
    client: str = ""


def text_request(message: Inference, asker: Asker, *, name: str = "") -> InferenceRequest:
    """The request for text that a message asks for; `name` is what the client calls it. Raises BadRequest."""
    if message.task != TEXT_GENERATION:
        raise BadRequest(
            f"the task {message.task[:64]!r} is not served here; use {TEXT_GENERATION!r} or {TEXT_EMBEDDING!r}",
            code="unsupported_task",
            param="task",
        )
    if (message.inputs is None) == (message.messages is None):
        raise BadRequest("give either `inputs` (a prompt) or `messages` (a chat)", code="invalid_inputs", param="inputs")
    if not isinstance(message.inputs, str | None):
        raise BadRequest(f"`inputs` of {TEXT_GENERATION!r} is one text", code="invalid_inputs", param="inputs")
    return _wished(_text_request(message, message.inputs, name), message, asker)


def vector_request(message: Inference, asker: Asker) -> tuple[InferenceRequest, list[Input]]:
    """The request for embeddings that a message asks for, and its inputs. Raises BadRequest."""
    if message.inputs is None or message.messages is not None:
        raise BadRequest(
            f"{TEXT_EMBEDDING!r} takes `inputs`: a text, token ids, or a list of either", code="invalid_inputs", param="inputs"
        )
    inputs = inputs_of(message.inputs, field="inputs")
    return _wished(embedding_inference(message.model, message.parameters.dimensions), message, asker), inputs


def _wished(request: InferenceRequest, message: Inference, asker: Asker) -> InferenceRequest:
    options = message.options
    return msgspec.structs.replace(
        request,
        tenant=asker.tenant,
        client=asker.client,
        affinity=options.affinity,
        priority=options.priority,
        deadline_ms=options.deadline_ms,
        hedge=options.hedge,
        resume=options.resume,
    )


def _text_request(message: Inference, prompt: str | None, name: str) -> InferenceRequest:
    chat = message.messages is not None
    parameters = message.parameters
    return InferenceRequest(
        request_id=str(uuid.uuid4()),
        model=message.model,
        task="chat" if chat else "completion",
        reader=Reader(model=message.model, name=name),
        messages=[msgspec.to_builtins(one) for one in message.messages] if message.messages else None,
        prompt=prompt,
        max_tokens=_new_tokens(parameters, CHAT_TOKENS if chat else COMPLETION_TOKENS),
        max_length=parameters.max_length,
        temperature=_or(parameters.temperature, 0.7 if chat else 1.0),
        top_p=_or(parameters.top_p, 0.9 if chat else 1.0),
        top_k=_or(parameters.top_k, 50 if chat else 0),
        min_p=_or(parameters.min_p, 0.0),
        repetition_penalty=_or(parameters.repetition_penalty, 1.0),
        presence_penalty=_or(parameters.presence_penalty, 0.0),
        frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        seed=_or(parameters.seed, secrets.randbits(31)),
        stop=[parameters.stop] if isinstance(parameters.stop, str) else parameters.stop or [],
        stream=message.stream,
        created=int(time.time()),
    )


def _new_tokens(parameters: Parameters, default: int) -> int:
    """The strictest limit that was given. `max_length` bounds the new tokens too, whatever the prompt's length is."""
    given = (parameters.max_new_tokens, parameters.max_tokens, parameters.max_length)
    return min((limit for limit in given if limit is not None), default=default)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
