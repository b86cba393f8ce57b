"""How a multiplexer is set up: `policy` of a multiplexer file, `[multiplexer]` of the node's own."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh.config import Option
from node.multiplexer.memory import ONE, check_budget
from node.multiplexer.plugins import check_policy
from node.multiplexer.policies import DEFAULT_POLICY, Knobs

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class MultiplexerSettings(Knobs, frozen=True, kw_only=True):
    """The keys of both, with what the policies have."""

    policy_type: Annotated[
        str,
        Option(
            help="Who decides on switches: fifo, cost_aware, time_slice or an installed one.", metavar="NAME", check=check_policy
        ),
    ] = DEFAULT_POLICY
    request_timeout_secs: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        Option(help="Longest that a request waits for its model's turn.", default_help="as long as its client does"),
    ] = None
    drain_before_switch: Annotated[
        bool, Option(help="Let what runs end before a switch; without, it is interrupted and its clients are told.")
    ] = True
    drain_timeout_secs: Annotated[Seconds, Option(help="After so long it is interrupted nevertheless.")] = 300.0
    min_active_secs: Annotated[
        Seconds, Option(help="A model that is awake stays so at least this long, whatever the policy says.")
    ] = 0.0
    alive_interval_secs: Annotated[
        Annotated[float, msgspec.Meta(gt=0)], Option(help="Seconds between looks at whether what is awake is well.")
    ] = 5.0
    max_waiting: Annotated[
        Annotated[int, msgspec.Meta(ge=1)], Option(help="Requests that may wait for one model; one more is refused.")
    ] = 4096
    memory_budget: Annotated[
        str,
        Option(
            help="What models may take of the accelerator together while they are awake: an amount as 70GiB; free, what is free"
            " when the node starts; or one, one model at a time. A model whose memory nobody knows is awake alone.",
            check=check_budget,
        ),
    ] = ONE
