"""Keeps something alive that dies: counts, waits, starts again, and says what is going on.

1. A `Life` is one attempt, from start to death. It calls `Supervisor.ready` when the thing answers and returns why it died.
2. The first restart is at once; the next wait `delay` seconds, doubling up to `longest`. `stable` seconds of running reset it.
3. After `CRASH_LOOP` deaths in a row the state is `failed` until a life gets ready again; it is still restarted.
4. For good ends only: `Refused` (restarting cannot help) and `limit` restarts in a row.
5. Every change is told through `changed`, at once and before any wait.
6. Asleep is no death: `sleep` ends the life, `rest` lets it end, `wake` starts the next one, and none counts as a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from mesh.messages.record import ModelState

CRASH_LOOP = 3
"""Deaths without a stable run in between that make a crash loop."""

Life = Callable[[], Awaitable[str]]

logger = logging.getLogger(__name__)


class Refused(Exception):
    """Raised by a life whose child says that it can never work. Fix what the message names and start the node again."""


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When to start again. Seconds, except `limit`: the restarts in a row after which it is over."""

    delay: float = 5.0
    longest: float = 60.0
    stable: float = 5.0
    limit: int = 10_000


class RestartHistory:
    """The arithmetic of a policy, without a clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.streak = 0
        """Deaths since the last stable run."""
        self._policy = policy

    def died(self, ran: float) -> float | None:
        """Seconds to wait before the next start after a life that was ready for `ran` seconds; None when it is over."""
        policy = self._policy
        self.streak = 1 if ran >= policy.stable else self.streak + 1
        if self.streak > policy.limit:
            return None
        if self.streak == 1:
            return 0.0
        # The exponent is bounded because a float is not: 2 ** 1100 overflows.
        return min(policy.longest, policy.delay * 2.0 ** min(self.streak - 2, 32))

    @property
    def crash_loop(self) -> bool:
        """True when it dies again and again."""
        return self.streak >= CRASH_LOOP


class Supervisor:
    """Runs lives one after the other; see the head of this file."""

    def __init__(self, name: str, *, policy: RestartPolicy, changed: Callable[[], None]) -> None:
        self.state: ModelState = "loading"
        self.last_error: str | None = None
        self.refused = False
        self.restarts = 0
        """How often it was started again, ever."""
        self.settled = trio.Event()
        """Set when it is first ready, asleep or failed."""
        self._name = name
        self._policy = policy
        self._history = RestartHistory(policy)
        self._changed = changed
        self._ready_since: float | None = None
        self._awake = trio.Event()
        self._awake.set()
        self._turn = trio.Event()
        self._living: trio.CancelScope | None = None
        self._is_over = False

    @property
    def uptime(self) -> float:
        """Seconds since the current life got ready, else 0."""
        return 0.0 if self._ready_since is None else trio.current_time() - self._ready_since

    def ready(self) -> None:
        """The current life answers."""
        self._ready_since = trio.current_time()
        self._enter("ready")

    async def run(self, life: Life) -> None:
        """Run lives until cancelled, refused or over the limit."""
        while not self._is_over:
            while not self._awake.is_set():
                await self._awake.wait()
            with trio.CancelScope() as self._living:
                await self._live(life)
            self._living = self._ready_since = None
            if not self._awake.is_set():
                self._rest()

    async def sleep(self) -> None:
        """End the current life and start none before `wake`; returns when it has ended. One that is over for good stays so."""
        if self._awake.is_set():
            self._awake = trio.Event()
        self.lost()
        if self._living is not None:
            self._living.cancel()
        else:
            self._rest()
        while self.state != "asleep" and not self._is_over and not self._awake.is_set():
            await self._turn.wait()

    async def wake(self) -> bool:
        """Live again, and wait until that is ready. False when it fails, or is put to sleep again meanwhile."""
        if not self._awake.is_set():
            self._awake.set()
            if self.state == "asleep":
                self._enter("loading")
        while self.state == "loading" and self._awake.is_set():
            await self._turn.wait()
        return self.state == "ready"

    def rest(self) -> None:
        """Let the current life be the last one before `wake`: nobody needs it now, and its end is no death."""
        self._awake = trio.Event()

    def lost(self) -> None:
        """The current life is dead, although its remains are still being cleared: tell it at once."""
        if self.state == "ready":
            self._enter("loading")

    async def _live(self, life: Life) -> None:
        """One life, and the wait after it."""
        try:
            cause = await life()
        except Refused as refusal:
            self.refused = True
            self._over(str(refusal))
            return
        if not self._awake.is_set():
            return
        delay = self._mourn(cause)
        if delay is not None:
            await trio.sleep(delay)
            self.restarts += 1

    def _rest(self) -> None:
        if self._is_over or self.state == "asleep":
            return
        self._history = RestartHistory(self._policy)
        self._enter("asleep")

    def _mourn(self, cause: str) -> float | None:
        delay = self._history.died(self.uptime)
        self._ready_since = None
        if delay is None:
            self._over(f"given up after {self._history.streak} deaths in a row: {cause}")
            return None
        looping = self._history.crash_loop
        self.last_error = f"crash loop, {self._history.streak} deaths in a row: {cause}" if looping else cause
        logger.warning("%s died: %s; starting again %s", self._name, self.last_error, f"in {delay:g} s" if delay else "now")
        self._enter("failed" if looping else "loading")
        return delay

    def _over(self, cause: str) -> None:
        self._is_over = True
        self._ready_since = None
        self.last_error = cause
        logger.error("%s is not served: %s", self._name, cause)
        self._enter("failed")

    def _enter(self, state: ModelState) -> None:
        self.state = state
        if state != "loading":
            self.settled.set()
        self._turn.set()
        self._turn = trio.Event()
        self._changed()
