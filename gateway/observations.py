"""What this gateway has seen of each (node, model): its speed, its load between two reports, its failures.

1. Averages are exponential, start at the first value, and are `None` before it.
2. `in_flight` goes up in `begin` and down in `end`, once each; a request tried on two nodes counts once on each.
3. A busy answer is not a failure: only failures make a node suspect, for a time that doubles up to `SUSPECT_MAX`; those that come
   together count as one. After it one request at a time tries the node, until one succeeds.
4. At most `MAX_PAIRS` pairs are remembered; the ones not tried for longest go first, never one with a request in flight.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.nonsense import is_absurd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.identity import PeerId
    from mesh.messages.link import ModelLoad

SMOOTHING = 0.2
"""Weight of a new value in an average."""
SUSPECT_FIRST = 0.5
SUSPECT_MAX = 30.0
MAX_PAIRS = 4096

logger = logging.getLogger(__name__)


@dataclass
class Observation:
    """One model on one node, as seen from here. Times in seconds."""

    about: str = "a node"
    """Node and model, for people."""
    in_flight: int = 0
    ttft: float | None = None
    itl: float | None = None
    slowest_gap: float | None = None
    """The longest wait between two tokens of an answer, averaged over answers: about the 99th percentile of the gaps."""
    tried_at: float | None = None
    suspect_until: float = 0.0
    failures_in_row: int = 0
    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    total_latency: float = 0.0
    """Of the requests that succeeded."""
    faults: Counter[str] = field(default_factory=Counter)
    """Nonsense that it said, see `nonsense.py`."""
    _report: ModelLoad | None = field(default=None, repr=False)
    _reported: int = 0
    _in_flight_then: int = 0
    _moves: int = 0
    _moves_then: int = -1
    """Requests that came and went, and how many had at the last report that said there were none."""

    @property
    def latency(self) -> float | None:
        """The mean, in seconds, of the requests that succeeded."""
        return self.total_latency / self.succeeded if self.succeeded else None

    def suspect(self, now: float) -> bool:
        """It failed a moment ago, or one request is finding out whether it still does."""
        return now < self.suspect_until or (self.failures_in_row > 0 and self.in_flight > 0)

    def breaker(self, now: float) -> Literal["closed", "open", "half_open"]:
        """Closed: it is used like any other. Open: only when there is no other. Half open: for one request at a time."""
        if not self.failures_in_row:
            return "closed"
        return "open" if now < self.suspect_until else "half_open"

    def fault(self, kind: str) -> None:
        """It said something that no sound node would."""
        self.faults[kind] += 1
        if self.faults[kind] == 1:
            logger.warning("%s said nonsense (%s); it is counted in /status from now on", self.about, kind)

    def busy(self, load: ModelLoad) -> int:
        """Requests running or waiting there: the newest report, plus what we sent and minus what ended since."""
        if load is not self._report:
            self._report = load
            self._judge(load)
            self._take_report(max(0, load.running) + max(0, load.waiting))
        return max(0, self._reported + self.in_flight - self._in_flight_then, self.in_flight)

    def reported(self, running: int, waiting: int, *, ended: bool) -> None:
        """Counters that came with an event, newer than the last heartbeat. `ended`: our request is not among them."""
        if running > 0 or waiting > 0:
            self._take_report(max(0, running) + max(0, waiting))
            self._in_flight_then -= ended

    def _judge(self, load: ModelLoad) -> None:
        if is_absurd(load):
            self.fault("absurd_load")
        if load.running or load.waiting or not self.in_flight:
            self._moves_then = -1
        elif self._moves_then == self._moves:
            self.fault("idle_while_working")
        else:
            self._moves_then = self._moves

    def _take_report(self, busy: int) -> None:
        self._reported = busy
        self._in_flight_then = self.in_flight

    def begin(self, now: float) -> None:
        """A request goes there."""
        self.in_flight += 1
        self._moves += 1
        self.requests += 1
        self.tried_at = now

    def end(self) -> None:
        """The request of one `begin` is over, however it ended."""
        self.in_flight -= 1
        self._moves += 1

    def succeed(self, latency: float) -> None:
        """It ended with `Done`."""
        self.succeeded += 1
        self.total_latency += latency
        self.failures_in_row = 0
        self.suspect_until = 0.0

    def fail(self, now: float) -> None:
        """The node, its worker or the way there broke."""
        self.failed += 1
        if now < self.suspect_until:
            # One death fails all that ran there: that is one failure, not many in a row.
            return
        self.suspect_until = now + min(SUSPECT_MAX, SUSPECT_FIRST * 2 ** min(self.failures_in_row, 16))
        self.failures_in_row += 1

    def saw_first_token(self, seconds: float) -> None:
        """From sending to the first token, of a request that did not have to queue."""
        self.ttft = _average(self.ttft, seconds)

    def saw_decode(self, seconds: float, tokens: int) -> None:
        """How long the `tokens` after the first took."""
        if tokens > 0:
            self.itl = _average(self.itl, seconds / tokens)

    def saw_gap(self, seconds: float) -> None:
        """The longest wait between two tokens of one answer."""
        if seconds > 0:
            self.slowest_gap = _average(self.slowest_gap, seconds)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)


class Observations:
    """All of them, by node and model."""

    def __init__(self, *, limit: int = MAX_PAIRS) -> None:
        self._pairs: dict[tuple[PeerId, str], Observation] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._pairs)

    def of(self, peer_id: PeerId, model: str) -> Observation:
        """The pair's observation; a fresh one when it was never seen."""
        found = self._pairs.get((peer_id, model))
        if found is None:
            self._make_room()
            found = self._pairs[peer_id, model] = Observation(about=f"{model} on {peer_id}")
        return found

    def known(self, peer_id: PeerId, models: Iterable[str]) -> list[Observation]:
        """What was seen of these models of one node; nothing for those that were never looked at."""
        found = (self._pairs.get((peer_id, model)) for model in models)
        return [seen for seen in found if seen is not None]

    def _make_room(self) -> None:
        if len(self._pairs) < self._limit:
            return
        idle = [(seen.tried_at or 0.0, key) for key, seen in self._pairs.items() if not seen.in_flight]
        for _, key in sorted(idle)[: max(1, self._limit // 8)]:
            del self._pairs[key]
