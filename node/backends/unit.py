"""One backend of the configuration, as it is going to be run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node.supervisor import RestartPolicy

if TYPE_CHECKING:
    from node.backends.settings import BackendSettings


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Settings with what the node decided on: a name, ports, when to restart. `port` is P, never 0 once it runs."""

    settings: BackendSettings
    id: str
    host: str = "127.0.0.1"
    port: int = 0
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    check_interval: float = 60.0
    """Seconds between looks at a server that is not ours."""

    @property
    def max_requests(self) -> int:
        """Requests under way at once."""
        return self.settings.max_requests or 256
