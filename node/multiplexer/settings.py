"""How a multiplexer is set up, as its file says it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from node.multiplexer.policies import DEFAULT_POLICY, Knobs

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class MultiplexerSettings(Knobs, frozen=True, kw_only=True):
    """The `policy` of a multiplexer file, with what it has beyond that."""

    policy_type: str = DEFAULT_POLICY
    request_timeout_secs: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Longest that a request waits for its model; None = as long as its client does."""
    drain_before_switch: bool = True
    """Let what runs end before a switch; else it is interrupted."""
    drain_timeout_secs: Seconds = 300.0
    """After so long it is interrupted nevertheless."""
    min_active_secs: Seconds = 0.0
    """A model that is awake stays so at least this long, whatever the policy says."""
    alive_interval_secs: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """Requests that may wait for one model; one more is refused."""
