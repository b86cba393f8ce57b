"""A request for inference and the events that answer it: the same on a link and on the worker's socket.

Every request is answered by at most one `Accepted`, then any number of `Delta`, then exactly one `Done` or `Fail`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Task = Literal["chat", "completion", "embedding"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
ToolChoice = Literal["auto", "none", "required"]

ANONYMOUS = "anonymous"
"""The tenant of whoever has shown no key."""


class Grammar(msgspec.Struct, frozen=True):
    """What the output must match. `text` by kind: empty, a schema as JSON, a regular expression, a JSON list of texts, Lark.

    `param` is the field that the client used, for errors about it.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    text: str = ""
    param: str = "response_format"


class Reader(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the client reads its stream: nothing for a model, but for a gateway that goes on with the stream of another one."""

    model: str = ""
    """What the client calls the model."""
    name: str = ""
    """What the client calls the request, on a WebSocket."""
    include_usage: bool = False


class Said(msgspec.Struct, frozen=True):
    """An answer so far, of which only the text is known. `pieces`: in how many it came."""

    text: str
    pieces: int


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, as the gateway accepted it; resuming it elsewhere sends the same bytes.

    `messages` for the task chat (OpenAI's shape, already validated), `prompt` for completion, `inputs` for embedding.
    `seed` is always set by the gateway: sampling is a pure function of (seed, position).
    """

    request_id: str
    model: str
    task: Task = "chat"
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    inputs: list[str | list[int]] | None = None
    """Texts, or their token ids."""
    dimensions: int | None = None
    """Of each vector: the first so many of the model's, brought to unit length again."""
    max_tokens: int | None = None
    max_length: int | None = None
    """Prompt and new tokens together; the stricter of this and `max_tokens` holds."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    n: int = 1
    """Answers to give, each a choice of its own; choice 0 is what `n` 1 would give."""
    stop: list[str] = []
    min_tokens: int = 0
    """Before so many tokens neither an end token nor a stop string ends the answer."""
    ignore_eos: bool = False
    echo: bool = False
    """The answer's text begins with the prompt's."""
    logprobs: int | None = None
    """None: not wanted; else the number of alternatives to tell beside each token."""
    grammar: Grammar | None = None
    tools: list[dict[str, Any]] = []
    """OpenAI's shape, already validated."""
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    """With `tool_choice` required: the one to call."""
    parallel_tool_calls: bool = True
    stream: bool = True
    """False: the answer is taken in one piece. Nothing of it is shown before its end, so another node may start over."""
    tenant: str = ANONYMOUS
    affinity: str = ""
    """Requests of one conversation or user share it (`prompt_cache_key`, else `user`): a gateway sends them to one node."""
    created: int = 0
    """Unix seconds at the gateway: the chat template's clock, so that a resumed request renders the same prompt."""
    deadline_ms: int | None = None
    """Milliseconds left when it was sent; no two machines compare wall clocks."""
    priority: int = 0
    """Higher is served earlier where requests wait for one engine."""
    hedge: bool | None = None
    """Whether a gateway may ask a second node when the first is late; None: as the gateway is set up. Nodes ignore it."""
    client: str = ""
    """The address that it came from, for the gateway alone: no node is told."""
    resume: bool = True
    """False: an answer that is lost in the middle is an error, no other node goes on with it."""
    keep: bytes = b""
    """A secret under which the node keeps what it gave out, and goes on for a while when its reader is lost; empty: neither."""
    reader: Reader | None = None
    prior: list[list[int]] = []
    """Per choice the token ids that another node gave out already: the answer goes on behind them, as if never interrupted."""
    said: Said | None = None
    """What another node gave out already that knows no tokens: the answer goes on behind it, as well as it can be done."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts by the model's own tokenizer."""

    prompt_tokens: int
    completion_tokens: int


class Performance(msgspec.Struct, frozen=True):
    """Where the time of one request went (contract R50)."""

    prefill_time_ms: float
    decode_time_ms: float
    queue_time_ms: float
    tokens_per_second: float
    batch_size: int

    def rounded(self) -> Performance:
        """As it is told to clients: whole microseconds, and thousandths of a token per second."""
        return Performance(
            round(self.prefill_time_ms, 3),
            round(self.decode_time_ms, 3),
            round(self.queue_time_ms, 3),
            round(self.tokens_per_second, 3),
            self.batch_size,
        )


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """Somebody works on it. `node`, `attempts`, `numerics` and `resume_token` are filled in by dispatch, the rest by the node."""

    running: int = 0
    waiting: int = 0
    node: str = ""
    attempts: int = 1
    numerics: str = ""
    """As the node announced it; nodes with equal ones compute alike."""
    kept: bool = False
    """The node keeps what it gives out, as `InferenceRequest.keep` asked."""
    resume_token: str = ""
    """With it the client picks its stream up at any gateway of the mesh; empty: it cannot."""


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token's bytes and the log of its probability in the model's own distribution, before sampling parameters."""

    token: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The same of a generated token, with the likeliest alternatives, best first."""

    token: bytes
    logprob: float
    top: list[Alternative] = []


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a tool call: `id` and `name` come once, first; `arguments` are pieces of a JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, tag="delta", omit_defaults=True):
    """New output of one choice. `offset` is the index of the first of `token_ids` among the generated tokens.

    `text` may be empty (held back bytes of a character) and its characters need not line up with `token_ids`.
    A text-only service knows no tokens: its deltas have no `token_ids`, `offset` counts deltas, and they cannot be resumed.
    What a delta says is a function of the tokens up to its own: replaying them elsewhere gives the same deltas.
    """

    offset: int
    token_ids: list[int]
    text: str
    choice: int = 0
    reasoning: str = ""
    """What the model thought aloud; no part of `text`."""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprob] = []
    """One for each of `token_ids`, where the request asked."""
    finish_reason: FinishReason | None = None
    """This choice is complete; only where a request has several. `Done` follows the last one's."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request ended well. `usage` counts all choices.

    `embeddings` only for that task: one vector per input, see `mesh.vectors`.
    """

    finish_reason: FinishReason
    usage: Usage
    performance: Performance
    running: int = 0
    waiting: int = 0
    embeddings: list[bytes] | None = None
    resumes: int = 0
    exact: bool = True
    """How many nodes went on with the answer of another one, and whether they compute alike; filled in by dispatch."""


class Fail(msgspec.Struct, frozen=True, tag="fail"):
    """The request ended badly. `kind` is a name in `mesh.errors.KINDS`; the rest are that error's fields."""

    kind: str
    message: str
    code: str
    status: int
    param: str | None = None
    retry_after: float | None = None
    running: int = 0
    waiting: int = 0


class Kept(msgspec.Struct, frozen=True, tag="kept", omit_defaults=True):
    """The answer to an `Attach` that only looks, and its end: what a node has of a request.

    `request.prior` is what was given out before the token that was asked for, `characters` how much text that was, by choice;
    `ended` are the choices that were complete by then, in the order in which they ended.
    """

    request: InferenceRequest
    characters: list[int] = []
    ended: list[tuple[int, FinishReason]] = []


Event = Accepted | Delta | Done | Fail | Kept
