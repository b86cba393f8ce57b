"""What a peer says about itself, signed: the node record."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["bootstrap", "node", "gateway", "client"]
ModelState = Literal["ready", "asleep", "loading", "failed"]


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model's backend can do (contract R81)."""

    tasks: list[str] = []
    streaming: bool = True
    batching: bool = True
    hardware_types: list[str] = []
    protocols: list[str] = []
    max_batch: int = 0
    """Requests that are computed together at most; 0 where nobody tells."""
    continues: bool = False
    """It goes on with an answer of which only the text is known."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model that a node serves. `context_length` in tokens, as served; `weight` for weighted routing."""

    id: str
    aliases: list[str] = []
    task: str = "chat"
    context_length: int = 0
    state: ModelState = "loading"
    roles: list[str] = msgspec.field(default_factory=lambda: ["prefill", "decode"])
    weights_digest: str = ""
    numerics: str = ""
    wake_seconds: float = 0.0
    weight: float = 1.0
    backend: str = ""
    unit: str = ""
    """Which of the node's backends has it, where it runs several: its ports are `service-UNIT` and `supervisor-UNIT`."""
    created: int = 0
    capabilities: Capabilities = Capabilities()


class Hardware(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine, as far as routing cares. Memory in bytes."""

    device: str = "cpu"
    device_name: str = ""
    device_count: int = 0
    memory_bytes: int = 0
    cpu_count: int = 0


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a sealed record. `sequence` grows with every change, `ttl` counts in seconds from receipt."""

    peer_id: str
    sequence: int
    issued_at: int
    ttl: int
    role: Role
    name: str
    mesh: str
    version: str
    addresses: list[str]
    models: list[ModelEntry] = []
    hardware: Hardware = Hardware()
    ports: dict[str, int] = {}
    """HTTP ports by name: `service` (P) and `supervisor` (P+1) of the first backend, with `-UNIT` those of each of several."""
    limits: dict[str, int] = {}
    relay: bool = False
    """It joins linked peers with others that cannot be dialled."""


class SealedRecord(msgspec.Struct, frozen=True):
    """The record's bytes as its peer signed them; they are passed on unchanged and never encoded again."""

    payload: bytes
    signature: bytes
