"""What operators want: one model awake, or asleep, whoever waits.

1. Orders are carried out one after the other, in the order in which they came; at most MAX_ORDERS wait.
2. An operator who hangs up takes back an order that waits; one that is being carried out is finished.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.errors import MeshError

MAX_ORDERS = 16


@dataclass(eq=False)
class Order:
    """`model` awake, or asleep. Whoever carries it out says why not in `error`, and sets `done`."""

    model: str
    asleep: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: MeshError | None = None


class Orders:
    """See the head of this file. `news` is called when one comes."""

    def __init__(self, news: Callable[[], None]) -> None:
        self._waiting: deque[Order] = deque()
        self._news = news

    async def give(self, order: Order) -> None:
        """Returns once it is carried out. Raises Busy, or why it could not be."""
        if len(self._waiting) >= MAX_ORDERS:
            raise Busy(f"{MAX_ORDERS} orders wait for this multiplexer already; try again", retry_after=5)
        self._waiting.append(order)
        self._news()
        try:
            await order.done.wait()
        finally:
            if order in self._waiting:
                self._waiting.remove(order)
        if order.error is not None:
            raise order.error

    def take(self) -> Order | None:
        """The next one, for whoever carries it out now."""
        return self._waiting.popleft() if self._waiting else None
