"""Is the other side alive, and how far away is it?

1. Any received byte is a sign of life; `SILENCE` seconds without one mean dead.
2. A loop that finds itself more than one interval late was not listening: it grants the other side one more interval.
3. Round trips are measured on our own clock alone: the other side returns our `sent` plus the time it held it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from mesh.messages.link import Heartbeat

INTERVAL = 1.0
SILENCE = 3.0
MAX_RTT = 60.0
SMOOTHING = 0.2
"""Weight of a new round trip in the smoothed one."""


class Pulse:
    """Clock readings of one link. All times are trio's."""

    def __init__(self) -> None:
        self.rtt: float | None = None
        self._heard = trio.current_time()
        self._sent: float | None = None
        self._sent_heard = 0.0

    def heard(self) -> None:
        """Bytes arrived."""
        self._heard = trio.current_time()

    def echo(self) -> float | None:
        """What a heartbeat that leaves now returns."""
        if self._sent is None:
            return None
        return self._sent + trio.current_time() - self._sent_heard

    def beaten(self, heartbeat: Heartbeat) -> bool:
        """Take in a heartbeat. True when it is the first: answering it at once gives the other side its first round trip."""
        first = self._sent is None
        self._sent = heartbeat.sent
        self._sent_heard = now = trio.current_time()
        if heartbeat.echo is not None and 0 <= now - heartbeat.echo <= MAX_RTT:
            self._measure(now - heartbeat.echo)
        return first

    async def until_silent(self) -> None:
        """Wait until the other side counts as dead."""
        while True:
            deadline = self._heard + SILENCE
            await trio.sleep_until(deadline)
            late = trio.current_time() - deadline
            if deadline < self._heard + SILENCE:
                continue
            if late <= INTERVAL:
                return
            await trio.sleep(INTERVAL)
            if deadline >= self._heard + SILENCE:
                return

    def _measure(self, rtt: float) -> None:
        self.rtt = rtt if self.rtt is None else self.rtt + SMOOTHING * (rtt - self.rtt)
