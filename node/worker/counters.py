"""What the engine did since its start, for those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.messages.inference import Performance


@dataclass(kw_only=True)
class Counters:
    """Every request counts once in `total`, and once more in `completed` or `failed` when it ends."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    broken_steps: int = 0
    _queue_ms: float = 0.0
    _prefill_ms: float = 0.0
    _decode_ms: float = 0.0

    def complete(self, performance: Performance) -> None:
        """A request ended well."""
        self.completed += 1
        self._queue_ms += performance.queue_time_ms
        self._prefill_ms += performance.prefill_time_ms
        self._decode_ms += performance.decode_time_ms

    @property
    def averages(self) -> tuple[float, float, float]:
        """Milliseconds in the queue, in prefill and in decode, per completed request."""
        count = max(1, self.completed)
        return self._queue_ms / count, self._prefill_ms / count, self._decode_ms / count
