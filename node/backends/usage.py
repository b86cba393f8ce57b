"""What became of the requests of one backend.

1. Each counts once, when it begins. It ends as successful, as failed (our fault or the backend's), or as neither: the client's
   own fault, a full queue, a client that left.
2. Latency is that of the successful ones, from here to the end of the answer.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError, Unavailable
from mesh.health import Failures

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER_FAULT = 500


class Usage:
    """The counters."""

    def __init__(self) -> None:
        self.requests = 0
        self.successful = 0
        self.failed = 0
        self.active = 0
        self.latency = 0.0
        """Seconds that the successful ones took together."""
        self._failures = Failures()

    @property
    def failing(self) -> bool:
        """True when the last requests mostly failed."""
        return self._failures.failing

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request."""
        begun = trio.current_time()
        self.requests += 1
        self.active += 1
        try:
            yield
        except Exception as error:
            if not isinstance(error, MeshError) or error.status >= _SERVER_FAULT:
                self.failed += 1
                # That it is not there is told by its state.
                if not isinstance(error, Unavailable):
                    self._failures.ended(well=False)
            raise
        else:
            self.successful += 1
            self.latency += trio.current_time() - begun
            self._failures.ended(well=True)
        finally:
            self.active -= 1
