"""How far a request's answer may run ahead of whoever reads it.

1. A request begins with `WINDOW` bytes of credit; each event takes its `cost` from it, and waits while there is none left. The
   last one may overdraw it: one event may be larger than the window. A terminal event that nothing waits before goes anyway.
2. The opener gives back what its caller took, every `QUANTUM` bytes and not before the caller has room (`mesh/service.py`).
3. Events that wait are bounded: `MAX_HELD` bytes for a request, `MAX_HELD_BY_LINK` for all, `PATIENCE` seconds without credit.
   What goes beyond fails that request alone, with `slow_consumer`.
4. More credit than the window ends the link; more events than the credit ends the request.
"""

from __future__ import annotations

from collections import deque

import trio

from mesh.errors import BadRequest
from mesh.framing import FrameError

WINDOW = 256 * 1024
QUANTUM = 64 * 1024
OVERHEAD = 128
"""What an event costs beside its bytes: a token of 80 is an event of 260 to an HTTP client, which may leave 1 MiB unread."""
PATIENCE = 30.0
MAX_HELD = 1024 * 1024
MAX_HELD_BY_LINK = 16 * 1024 * 1024


def cost(size: int) -> int:
    """What an event takes that is so many bytes encoded."""
    return size + OVERHEAD


class Allowance:
    """The credit of one request that we answer, and its events that wait for it. `limited` False: an opener that gives none."""

    def __init__(self, *, limited: bool) -> None:
        self.credit: float = WINDOW if limited else float("inf")
        self.held: deque[bytes] = deque()
        self.held_bytes = 0
        self._news = trio.Event()

    def grant(self, amount: int) -> None:
        """Take new credit in. Raises FrameError when it is more than was used."""
        if self.credit + amount > WINDOW:
            raise FrameError(f"credit of {amount} bytes for a request that used {WINDOW - self.credit:g}")
        self.credit += amount
        self._news.set()

    def hold(self, message: bytes) -> None:
        """Keep an event until there is credit."""
        self.held.append(message)
        self.held_bytes += len(message)

    def release(self) -> bytes:
        """The next event that was kept; it is paid for."""
        message = self.held.popleft()
        self.held_bytes -= len(message)
        self.credit -= cost(len(message))
        return message

    def drop(self) -> None:
        """Forget what was kept and wake whoever waits for credit: the request is over."""
        self.held.clear()
        self.held_bytes = 0
        self._news.set()

    async def changed(self) -> bool:
        """Wait until there is credit or nothing is kept any more. False after `PATIENCE` seconds in which none came."""
        while self.held and self.credit <= 0:
            self._news = trio.Event()
            with trio.move_on_after(PATIENCE) as limit:
                await self._news.wait()
            if limit.cancelled_caught:
                return False
        return True


def too_slow() -> BadRequest:
    """What a request gets whose reader does not keep up."""
    return BadRequest(
        f"the answer was not read for {PATIENCE:g} s, or more than {MAX_HELD} bytes of it were waiting; read faster",
        code="slow_consumer",
    )
