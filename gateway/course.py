"""The course of one request through dispatch: where it is, what may happen there, and where that leads.

1. `TABLE` is all of it: dispatch tells the course what happened, and what the table does not have cannot happen.
2. A request begins in `choosing` and ends in exactly one of `done`, `failed` and `cancelled`, which nothing leaves.
3. Only what this gateway did or believes is told, never what a node merely claims.

| state | meaning |
| --- | --- |
| `choosing` | no node was asked yet; there may be none to ask |
| `connecting` | a node was asked and has not answered |
| `first_token` | it accepted the request; no token yet |
| `hedging` | the first token is late, and a second node was asked as well |
| `streaming` | a node gives tokens |
| `retrying` | it was lost, or could not; another one starts over |
| `resuming` | it was lost; another one goes on behind what was given |
"""

from __future__ import annotations

from typing import Literal

State = Literal[
    "choosing", "connecting", "first_token", "hedging", "streaming", "retrying", "resuming", "done", "failed", "cancelled"
]
Step = Literal["asked", "accepted", "hedged", "answered", "start_over", "go_on", "ended", "gave_up", "client_left"]

_ENDINGS: dict[Step, State] = {"gave_up": "failed", "client_left": "cancelled"}
_LOSSES: dict[Step, State] = {"start_over": "retrying", "go_on": "resuming", **_ENDINGS}
_BETWEEN: dict[Step, State] = {"asked": "connecting", **_LOSSES}

TABLE: dict[State, dict[Step, State]] = {
    "choosing": _BETWEEN,
    "retrying": _BETWEEN,
    "resuming": _BETWEEN,
    "connecting": {"accepted": "first_token", "hedged": "hedging", "answered": "streaming", **_LOSSES},
    "first_token": {"accepted": "first_token", "hedged": "hedging", "answered": "streaming", **_LOSSES},
    "hedging": {"asked": "hedging", "accepted": "hedging", "answered": "streaming", **_LOSSES},
    "streaming": {"ended": "done", **_LOSSES},
    "done": {},
    "failed": {},
    "cancelled": {},
}


class Course:
    """One request's way through the table."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: State = "choosing"

    def take(self, step: Step) -> None:
        """Go where the step leads. Raises RuntimeError for a step that cannot happen here: a mistake of ours."""
        leads = TABLE[self.state].get(step)
        if leads is None:
            raise RuntimeError(f"a request that is {self.state} cannot take the step {step!r}")
        self.state = leads

    @property
    def over(self) -> bool:
        """True when nothing more happens."""
        return not TABLE[self.state]
