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


class Doze(msgspec.Struct, frozen=True, tag="doze"):
    """Node to worker: give the accelerator's memory back and stay (`asleep`), or be ready again. Answered by `Dozed`."""

    number: int
    asleep: bool


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
    """What it computes in."""
    weights_digest: str
    numerics: str
    architecture: str
    batching: bool = True
    weights: str = ""
    """How weights are kept where that is not in `dtype`: `int8`."""
    threads: int = 0
    """That compute on the CPU; 0 on an accelerator, and for embeddings."""
    adapters: dict[str, str] = {}
    """Digests of the adapters that are served beside it, by name."""
    tasks: list[str] = msgspec.field(default_factory=lambda: ["chat", "completion"])
    memory: int = 0
    """Bytes of the device that it takes now; of the host's memory where it computes on the processor. 0 = unknown."""


class Dozed(msgspec.Struct, frozen=True, kw_only=True, tag="dozed"):
    """Worker to node: the `Doze` of this number is carried out, or `error` says why not; the model is as `asleep` says."""

    number: int
    asleep: bool
    memory: int = 0
    """As in `Ready`."""
    note: str = ""
    """What was given back, and what was not."""
    error: str = ""


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


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """The prefix cache (contract R72). Sizes in tokens; hits and misses count requests, evictions and nodes those of the tree."""

    hit_rate: float = 0.0
    hits: int = 0
    misses: int = 0
    evictable_size: int = 0
    protected_size: int = 0
    total_cached: int = 0
    total_capacity: int = 0
    evictions: int = 0
    node_count: int = 0


class GpuStats(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's accelerator (contract R70). None: the driver does not tell."""

    utilization_percent: float | None = None
    memory_used_gb: float
    memory_total_gb: float
    temperature_c: float | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine since its start (contract R71), in milliseconds per finished request where it says `avg`."""

    total_requests: int = 0
    completed_requests: int = 0
    failed_requests: int = 0
    total_tokens_generated: int = 0
    avg_queue_time_ms: float = 0.0
    avg_prefill_time_ms: float = 0.0
    avg_decode_time_ms: float = 0.0
    queue_size: int = 0
    queue_capacity: int = 0
    concurrent_requests: int = 0
    preemptions: int = 0
    broken_steps: int = 0
    cache: CacheStats = CacheStats()
    gpu: GpuStats | None = None


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag="alive"):
    """Worker to node, every second, from a thread that computes nothing: how the engine is.

    A wedged engine shows as the same `step` again and again while `busy_seconds`, the age of what it is doing, grows.
    """

    step: int
    running: int
    waiting: int
    busy_seconds: float
    stats: EngineStats


ToWorker = Submit | Abort | Doze
FromWorker = Loading | Ready | Refusal | Step | Alive | Dozed
