"""What a node and its worker process say to each other over a Unix socket."""

from __future__ import annotations

import msgspec

from mesh.messages.inference import Event, InferenceRequest


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Node to worker: start a request. `number` is unused until its terminal event."""

    number: int
    request: InferenceRequest


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Node to worker: stop a request. The worker still answers it with a terminal event (`Fail` code `cancelled`)."""

    number: int


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Worker to node, while the model loads: `done` of `total` units (tensors), for the progress bar."""

    done: int
    total: int
    phase: str = ""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Worker to node, once: the model generated its first token. What it is and can do."""

    context_length: int
    vocabulary: int
    parameters: int
    slots: int
    device: str
    device_name: str
    device_memory: int
    dtype: str
    weights_digest: str
    numerics: str
    architecture: str
    batching: bool = True


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """Worker to node, instead of Ready: the model cannot be served; restarting will not help. Says what to do."""

    message: str


class EngineLoad(msgspec.Struct, frozen=True):
    """The engine's counters after a step. Rates in tokens per second, 0 = not measured yet."""

    step: int
    running: int
    waiting: int
    slots: int
    prefill_rate: float = 0.0
    decode_rate: float = 0.0


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Worker to node: everything that one engine step produced, for all requests: (number, event) pairs."""

    load: EngineLoad
    events: list[tuple[int, Event]]


ToWorker = Submit | Abort
FromWorker = Loading | Ready | Refusal | Step
