"""The parent's side of a light sleep: the worker stays and gives the accelerator's memory back.

1. One order at a time is under way; an answer counts only for the last one, so one that nobody waits for any more does no harm.
2. Whoever dies in its sleep, or does not answer within LIMIT seconds, is no longer asleep lightly: the backend ends it for good,
   and the next wake loads the model anew.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import trio

from mesh.messages.worker import Doze, Dozed

if TYPE_CHECKING:
    from node.backends.conversation import Conversation

LIMIT = 300.0
"""Seconds: 100 GB at a third of a gigabyte each."""


class Dozing:
    """See the head of this file."""

    def __init__(self) -> None:
        self.light = False
        """Whether it sleeps lightly, or is on its way there or back."""
        self.note: str | None = None
        """What the worker said of its last sleep, while it sleeps."""
        self._numbers = itertools.count(1)
        self._number = 0
        self._turn = trio.Lock()
        self._answer: Dozed | None = None
        self._answered = trio.Event()

    async def order(self, conversation: Conversation, *, asleep: bool) -> Dozed | None:
        """Have the worker sleep or wake, and wait for its answer; None when it died, or says nothing."""
        async with self._turn:
            if not asleep and not self.light:
                return Dozed(number=self._number, asleep=False)  # somebody else has woken it meanwhile
            self._number, self._answer, self._answered = next(self._numbers), None, trio.Event()
            if not conversation.tell(Doze(self._number, asleep)):
                return None
            with trio.move_on_after(LIMIT):
                await self._answered.wait()
            return self._take_answer()

    def _take_answer(self) -> Dozed | None:
        if self._answer is not None and not self._answer.asleep:
            self.over()
        return self._answer

    def fall_asleep(self) -> None:
        """From now on it counts as asleep."""
        self.light = True

    def hear(self, dozed: Dozed) -> None:
        """The worker answers."""
        if dozed.number == self._number:
            self._answer = dozed
            self.note = dozed.note or None
            self._answered.set()

    def lost(self) -> None:
        """The worker is gone."""
        self._answered.set()

    def over(self) -> None:
        """It is awake, or asleep for good."""
        self.light, self.note = False, None
