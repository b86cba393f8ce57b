"""Loading and unloading a model of another peer, with its progress."""

from __future__ import annotations

from typing import Literal

import msgspec


class Manage(msgspec.Struct, frozen=True, tag="manage"):
    """The sender wants a model awake, or asleep. Only with the feature `manage`; answered by `Managed`, more than once."""

    number: int
    model: str
    awake: bool


class Managed(msgspec.Struct, frozen=True, tag="managed"):
    """How it goes: `working` every second, then one of the others. `seconds` since the order came; `kind` as in `Fail`."""

    number: int
    state: Literal["working", "done", "failed"]
    seconds: float = 0.0
    kind: str = ""
    code: str = ""
    message: str = ""
    status: int = 0


ManageControl = Manage | Managed
