"""What clients say on the WebSocket, and its translation into requests. Structs and pure functions, no I/O."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from mesh.errors import BadRequest
from mesh.messages.inference import InferenceRequest, Reader

_T = TypeVar("_T")

MAX_TOPICS = 32
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
INT32_MAX = 2**31 - 1
Count = Annotated[int, msgspec.Meta(ge=1, le=INT32_MAX)]

TEXT_GENERATION = "text-generation"
CHAT_TOKENS = 512
COMPLETION_TOKENS = 16


class Subscribe(msgspec.Struct, tag_field="type", tag="subscribe"):
    topics: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TOPICS)]


class Unsubscribe(msgspec.Struct, tag_field="type", tag="unsubscribe"):
    topics: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TOPICS)]


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Parameters(msgspec.Struct):
    """Sampling. `max_length` counts prompt and new tokens, `max_new_tokens` and `max_tokens` only new ones."""

    max_length: Count | None = None
    max_new_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=INT32_MAX)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None


class Inference(msgspec.Struct, tag_field="type", tag="inference"):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    request_id: Id | None = None
    task: str = TEXT_GENERATION
    inputs: str | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    stream: bool = False


class Cancel(msgspec.Struct, tag_field="type", tag="cancel"):
    request_id: Id


class Resume(msgspec.Struct, tag_field="type", tag="resume"):
    resume_token: str
    index: Annotated[int, msgspec.Meta(ge=0)] = 0


class Status(msgspec.Struct, tag_field="type", tag="status"):
    details: bool = False


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    pass


ClientMessage = Subscribe | Unsubscribe | Inference | Cancel | Resume | Status | Ping
TYPES = ("cancel", "inference", "ping", "resume", "status", "subscribe", "unsubscribe")

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


class _Envelope(msgspec.Struct):
    type: Any = None
    request_id: Any = None


def parse(text: str | bytes) -> ClientMessage:
    """One message of a client. Raises BadRequest, which names what is wrong and where."""
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(_explain(text, error)) from error


def request_id_in(text: str | bytes) -> str | None:
    """The `request_id` of a message that could not be understood, to answer it by."""
    envelope = _envelope(text)
    found = envelope.request_id if envelope else None
    return found[:128] if isinstance(found, str) else None


def _envelope(text: str | bytes) -> _Envelope | None:
    try:
        return msgspec.json.decode(text, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _explain(text: str | bytes, error: Exception) -> str:
    envelope = _envelope(text)
    if envelope is None:
        return "not a JSON object: every message is one, with a field `type`"
    if envelope.type not in TYPES:
        return f"unknown message type {str(envelope.type)[:64]!r}; the types are {', '.join(TYPES)}"
    return f"{envelope.type}: {error}"


def request_of(message: Inference, *, tenant: str, name: str = "") -> InferenceRequest:
    """The request that an `inference` message asks for; `name` is what the client calls it. Raises BadRequest."""
    if message.task != TEXT_GENERATION:
        raise BadRequest(
            f"the task {message.task[:64]!r} is not served here; use {TEXT_GENERATION!r}", code="unsupported_task", param="task"
        )
    if (message.inputs is None) == (message.messages is None):
        raise BadRequest("give either `inputs` (a prompt) or `messages` (a chat)", code="invalid_inputs", param="inputs")
    chat = message.messages is not None
    parameters = message.parameters
    return InferenceRequest(
        request_id=str(uuid.uuid4()),
        model=message.model,
        task="chat" if chat else "completion",
        reader=Reader(model=message.model, name=name),
        messages=[msgspec.to_builtins(one) for one in message.messages] if message.messages else None,
        prompt=message.inputs,
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
        tenant=tenant,
        created=int(time.time()),
    )


def _new_tokens(parameters: Parameters, default: int) -> int:
    """The strictest limit that was given. `max_length` bounds the new tokens too, whatever the prompt's length is."""
    given = (parameters.max_new_tokens, parameters.max_tokens, parameters.max_length)
    return min((limit for limit in given if limit is not None), default=default)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
