"""Asking linked nodes to load and unload models, and doing it for gateways.

1. Only gateways are obeyed, and only by a peer that has `manage`; at most MAX_ORDERS of one link at a time.
2. Progress comes every second. Who asks gives up when nothing is heard for PATIENCE; an order that has begun is carried out.
3. An answer that nobody is waiting for is dropped.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

import trio

from mesh.errors import KINDS, Busy, Denied, MeshError, TimedOut, Unavailable
from mesh.messages.manage import Manage, Managed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.link import Link
    from mesh.messages.manage import ManageControl

FEATURE = "manage"
MAX_ORDERS = 8
PATIENCE = 10.0
PROGRESS = 1.0


class Managing:
    """One peer's part. `manage(model, awake)` carries an order out or raises MeshError; without it the feature is not offered."""

    def __init__(self) -> None:
        self.manage: Callable[[str, bool], Awaitable[None]] | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._running: Counter[Link] = Counter()

    @property
    def features(self) -> list[str]:
        """What our hello says."""
        return [FEATURE] if self.manage is not None else []

    def hear(self, link: Link, message: ManageControl, nursery: trio.Nursery) -> None:
        """Begin with an order, or take an answer. Never blocks."""
        match message:
            case Manage():
                if refusal := self._refusal(link):
                    link.send(_failed(message.number, 0.0, refusal))
                    return
                self._running[link] += 1
                nursery.start_soon(self._obey, link, message)
            case Managed():
                asked = self._asked.get(message.number)
                if asked is not None and asked.link is link:
                    asked.heard(message)

    def _refusal(self, link: Link) -> MeshError | None:
        if self.manage is None:
            return Unavailable("this peer has no models to load", code="not_supported")
        if link.record.role != "gateway":
            return Denied("only a gateway may load and unload models", status=403, code="not_a_gateway")
        if self._running[link] >= MAX_ORDERS:
            return Busy(f"{MAX_ORDERS} orders of this gateway are under way here; try again", retry_after=5)
        return None

    async def _obey(self, link: Link, order: Manage) -> None:
        assert self.manage is not None
        began, failure = trio.current_time(), None

        async def progress() -> None:
            while True:
                link.send(Managed(order.number, "working", _since(began)))
                await trio.sleep(PROGRESS)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(progress)
                try:
                    await self.manage(order.model, order.awake)
                except MeshError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self._running[link] -= 1
            if not self._running[link]:
                del self._running[link]
        link.send(_failed(order.number, _since(began), failure) if failure else Managed(order.number, "done", _since(began)))

    async def ask(self, link: Link, model: str, *, awake: bool, progress: Callable[[float], None] = lambda _: None) -> float:
        """Have a model woken or put to sleep over there; the seconds that it took. `progress` hears them meanwhile.

        No time limit as long as the other side speaks. Raises what it raised, TimedOut, or Unavailable when the link dies.
        """
        if FEATURE not in link.hello.features:
            raise Unavailable(f"{link.record.name} cannot load and unload models", code="not_supported")
        number = next(self._numbers)
        asked = self._asked[number] = _Asked(link)
        try:
            link.send(Manage(number, model, awake))
            while True:
                answer = await _next(link, asked)
                if answer.state == "done":
                    return answer.seconds
                if answer.state == "failed":
                    raise _error(answer)
                progress(answer.seconds)
        finally:
            del self._asked[number]


async def _next(link: Link, asked: _Asked) -> Managed:
    with trio.move_on_after(PATIENCE):
        while not link.closed.is_set():
            with trio.move_on_after(PROGRESS):
                return await asked.answer()
        raise Unavailable(f"the link to {link.record.name} was lost", code="link_lost")
    raise TimedOut(f"{link.record.name} said nothing for {PATIENCE:g} s", code="no_progress")


class _Asked:
    """What is waited for: the last word alone, so that nothing piles up."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._last: Managed | None = None
        self._there = trio.Event()

    def heard(self, message: Managed) -> None:
        self._last = message
        self._there.set()

    async def answer(self) -> Managed:
        while self._last is None:
            self._there = trio.Event()
            await self._there.wait()
        answer, self._last = self._last, None
        return answer


def _since(began: float) -> float:
    return round(trio.current_time() - began, 3)


def _failed(number: int, seconds: float, error: MeshError) -> Managed:
    return Managed(number, "failed", seconds, type(error).__name__, error.code, error.message, error.status)


def _error(answer: Managed) -> MeshError:
    kind = KINDS.get(answer.kind, MeshError)
    return kind(answer.message, code=answer.code, status=answer.status or None)
