"""One registered service: what it said, what the last probe saw, what runs on it.

1. Heartbeat age counts on trio's clock, from receipt. After a restart of the gateway it starts anew: nobody was heard meanwhile.
2. Healthy is what was heard of lately, does not say that it is down, and answered its last probe.
3. Each request has a cancel scope here; `retire` gives them all `grace` seconds to finish.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from gateway.registry_view import clock
from gateway.registry_view.registration import DOWN

if TYPE_CHECKING:
    from gateway.registry_view.registration import Registration
    from mesh.openai.remote.client import RemoteModel

HealthStatus = Literal["unknown", "healthy", "unhealthy"]


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Seconds: after which a silent service is unhealthy, after which it is dropped, and so on."""

    unhealthy: float = 120.0
    purge: float = 300.0
    grace: float = 60.0
    probe: float = 60.0
    retry_first: float = 1.0
    """After a failed probe; it doubles up to `probe`."""


@dataclass(eq=False)
class ForeignService:
    """See the head of this file."""

    registration: Registration
    cadence: Cadence
    last_heartbeat: str = field(default_factory=clock.now)
    beaten_at: float = field(default_factory=trio.current_time)
    models: list[RemoteModel] = field(default_factory=list)
    model_ids: frozenset[str] = frozenset()
    answered: bool | None = None
    """What the last probe saw; None before the first."""
    problem: str = ""
    probe_at: float = 0.0
    probing: trio.Event | None = None
    requests: set[trio.CancelScope] = field(default_factory=set)
    request_count: int = 0
    error_count: int = 0
    success_count: int = 0
    seconds: float = 0.0
    """Of the requests that succeeded."""
    plain: bool = False
    """It refuses parameters that OpenAI does not know."""
    _failures: int = 0

    @property
    def name(self) -> str:
        """As registered."""
        return self.registration.name

    @property
    def silence(self) -> float:
        """Seconds since its last heartbeat."""
        return trio.current_time() - self.beaten_at

    @property
    def health(self) -> HealthStatus:
        """Rule 2."""
        if self.silence > self.cadence.unhealthy or self.registration.status.lower() in DOWN or self.answered is False:
            return "unhealthy"
        return "unknown" if self.answered is None else "healthy"

    @property
    def is_healthy(self) -> bool:
        """True when it may be asked."""
        return self.health == "healthy"

    @property
    def response_time(self) -> float:
        """Seconds that an answer takes, on average; 0 before the first."""
        return self.seconds / self.success_count if self.success_count else 0.0

    def succeeded(self, seconds: float) -> None:
        """A request was answered."""
        self.success_count += 1
        self.seconds += seconds

    def lists(self, models: list[RemoteModel]) -> None:
        """What it serves, as it just said."""
        self.models = models
        self.model_ids = frozenset(model.id for model in models)

    def beat(self) -> None:
        """It was heard of."""
        self.beaten_at = trio.current_time()
        self.last_heartbeat = clock.now()

    def saw(self, *, answered: bool, problem: str = "") -> None:
        """The result of a probe, or of a request that could not reach it."""
        self.answered = answered
        self.problem = problem
        self._failures = 0 if answered else self._failures + 1
        again = self.cadence.probe
        if not answered:
            again = min(again, self.cadence.retry_first * 2 ** min(self._failures - 1, 16))
        self.probe_at = trio.current_time() + again

    def retire(self) -> None:
        """It is gone from the list: what runs on it may finish within the grace time."""
        for scope in self.requests:
            scope.deadline = min(scope.deadline, trio.current_time() + self.cadence.grace)
