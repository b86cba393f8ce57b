"""What no sound node would say. It is contained where it is heard, named here, and counted for each node (`faults` in `/status`).

| fault | what the node did |
| --- | --- |
| `absurd_load` | reported a load below zero, beyond all bounds, or that is no number |
| `idle_while_working` | reported twice in a row that it does nothing, while it worked for us all along |
| `bad_tokens` | gave a token again, left one out, or gave one that is none, or for a choice that nobody asked for |
| `too_many_tokens` | went on after the last token that the request allows |
| `absurd_usage` | counted tokens below zero or more than it can have made |
| `bad_message` | answered with something that cannot be read |
| `incomplete_answer` | stopped without saying that it was done |
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gateway.routing.snapshot import MAX_RATE, MAX_REQUESTS
from mesh.messages.inference import Usage

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry

IN_ANSWERS = frozenset(("bad_tokens", "too_many_tokens", "bad_message", "incomplete_answer"))
"""Error codes that are faults of the node that gave the answer."""
MOST_TOKENS = 1_048_576
"""Of one choice, where neither the request nor the model's context says less."""
MOST_PROMPT_TOKENS = 2**32
"""Of all inputs of one request."""


def is_absurd(load: ModelLoad) -> bool:
    """True for a report that cannot be true."""
    counts = (load.running, load.waiting, load.slots)
    rates = (load.prefill_rate, load.decode_rate)
    return not (all(0 <= count <= MAX_REQUESTS for count in counts) and all(_is_rate(rate) for rate in rates))


def _is_rate(rate: float) -> bool:
    return math.isfinite(rate) and 0 <= rate <= MAX_RATE


def most_tokens(request: InferenceRequest, entry: ModelEntry | None) -> int:
    """How many tokens one choice can have at most."""
    limits = [MOST_TOKENS, request.max_tokens, request.max_length, entry.context_length if entry is not None else None]
    return min(limit for limit in limits if limit)


def sound_usage(usage: Usage, *, given: int, most: int) -> Usage:
    """The usage where it can be true, else with what was counted here: `given` tokens of at most `most`."""
    prompt = usage.prompt_tokens if 0 <= usage.prompt_tokens <= MOST_PROMPT_TOKENS else 0
    completion = usage.completion_tokens if 0 <= usage.completion_tokens <= most else given
    sound = Usage(prompt, completion)
    return usage if sound == usage else sound
