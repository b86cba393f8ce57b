"""What clients say on the WebSocket. Structs and pure functions, no I/O.

What HTTP clients wish in headers stands in `options`; a wish that is not understood is an error, as it is there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from mesh.errors import BadRequest
from mesh.openai.embeddings import Encoding
from mesh.openai.translate import MAX_AFFINITY
from mesh.openai.wishes import MAX_DEADLINE, MAX_PRIORITY

MAX_TOPICS = 32
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
INT32_MAX = 2**31 - 1
Count = Annotated[int, msgspec.Meta(ge=1, le=INT32_MAX)]

TEXT_GENERATION = "text-generation"
TEXT_EMBEDDING = "text-embedding"


class Subscribe(msgspec.Struct, tag_field="type", tag="subscribe"):
    topics: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TOPICS)]


class Unsubscribe(msgspec.Struct, tag_field="type", tag="unsubscribe"):
    topics: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TOPICS)]


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Parameters(msgspec.Struct):
    """Sampling. `max_length` counts prompt and new tokens, `max_new_tokens` and `max_tokens` only new ones.

    The last two are for embeddings.
    """

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
    dimensions: int | None = None
    encoding_format: Encoding | None = None


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What HTTP clients say in headers of ours, and in the fields of a body that name a conversation or user."""

    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE)] | None = None
    hedge: bool | None = None
    resume: bool = True
    prompt_cache_key: str | None = None
    user: str | None = None

    @property
    def affinity(self) -> str:
        """What the requests of one conversation share."""
        return (self.prompt_cache_key or self.user or "")[:MAX_AFFINITY]


class Inference(msgspec.Struct, tag_field="type", tag="inference"):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    request_id: Id | None = None
    task: str = TEXT_GENERATION
    inputs: str | list[str | int | list[int]] | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    options: Options = msgspec.field(default_factory=Options)
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
    known = f"; the options are {', '.join(sorted(Options.__struct_fields__))}" if "unknown field" in str(error) else ""
    return f"{envelope.type}: {error}{known}"
