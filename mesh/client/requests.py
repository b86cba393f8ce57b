"""From the arguments of a call to a request, checked as a gateway checks its clients'."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from mesh.embedding import inputs_of
from mesh.errors import BadRequest
from mesh.http.message import Request
from mesh.openai.embeddings import embedding_inference
from mesh.openai.parse import parse_body, parse_chat, parse_completion
from mesh.openai.translate import Identity, chat_inference, completion_inference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mesh.embedding import Input
    from mesh.messages.inference import InferenceRequest


class Sampling(TypedDict, total=False):
    """How to choose tokens; the defaults are the HTTP API's."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | list[str]
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[str, float]
    min_tokens: int
    ignore_eos: bool
    response_format: dict[str, Any]
    structured_outputs: dict[str, Any]


class _Embed(msgspec.Struct):
    """The arguments of `embed`."""

    model: str
    inputs: str | list[str | int | list[int]]
    dimensions: int | None = None


_NOT_TEXT = frozenset(("n", "tools", "tool_choice", "logprobs", "top_logprobs", "echo"))
"""An answer here is one text, and could not show what these ask for."""


def chat_request(model: str, messages: Iterable[Mapping[str, Any]], sampling: Mapping[str, Any]) -> InferenceRequest:
    """Raises BadRequest, naming the field."""
    parsed = parse_chat(_body({"model": model, "messages": [dict(message) for message in messages], **sampling}))
    _refuse([*parsed.ignored, *(_NOT_TEXT & sampling.keys())])
    return chat_inference(parsed.body, _identity())


def completion_request(model: str, prompt: str, sampling: Mapping[str, Any]) -> InferenceRequest:
    """Raises BadRequest, naming the field."""
    parsed = parse_completion(_body({"model": model, "prompt": prompt, **sampling}))
    _refuse([*parsed.ignored, *(_NOT_TEXT & sampling.keys())])
    return completion_inference(parsed.body, _identity())


def embedding_request(model: str, inputs: object, dimensions: int | None) -> tuple[InferenceRequest, list[Input]]:
    """The request, but for its inputs, and these. Raises BadRequest, naming the field."""
    body, _ = parse_body(_body({"model": model, "inputs": inputs, "dimensions": dimensions}), _Embed, "inputs")
    return embedding_inference(body.model, body.dimensions), inputs_of(body.inputs, field="inputs")


def _body(fields: dict[str, Any]) -> Request:
    try:
        return Request(method="POST", path="/", body=msgspec.json.encode(fields))
    except (TypeError, UnicodeEncodeError) as error:
        raise BadRequest(f"the request cannot be sent: {error}; use plain texts, numbers, lists and dicts") from error


def _refuse(unknown: list[str]) -> None:
    if unknown:
        names = ", ".join(Sampling.__annotations__)
        raise BadRequest(f"{unknown[0]} is not a parameter; there are: {names}", param=unknown[0])


def _identity() -> Identity:
    return Identity(request_id=str(uuid.uuid4()), created=int(time.time()), seed=secrets.randbits(63))
