"""Finds out whether others can dial this peer, by asking those that it is linked with to try.

1. Some `HELPERS` are asked: bootstrap peers first, never over a relay. One that could not reach us makes us not reachable, for
   others may be where it is; where nobody answers nothing new is known.
2. It is asked anew after `EVERY` seconds, when our addresses change, and while the answer is not yes when new peers are linked.
3. The host that a bootstrap peer of ours sees us come from is tried as well: a machine behind a public address does not know it.
   Nobody else may name one, and a helper only ever confirms what it was asked: it cannot make us announce somebody else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from mesh.addresses import at_host, ip_of, is_near
from mesh.messages.reachability import DialBack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mesh.link import Link
    from mesh.messages.reachability import DialedBack
    from mesh.trail import Trail

Verdict = Literal["reachable", "not reachable", "unknown"]

FEATURE = "dial_back"
HELPERS = 3
ANSWER_LIMIT = 10.0
EVERY = 300.0
AGAIN = 15.0
"""Seconds between two rounds at least."""
SETTLE = 0.5
"""Seconds from the first news to a round: links come in bunches."""
WATCH = 15.0
"""Seconds between two looks at our own addresses."""
WAY = "reachability"
"""In the trail."""


@dataclass(slots=True, eq=False)
class _Question:
    answer: DialedBack | None = None
    answered: trio.Event = field(default_factory=trio.Event)


class Reachability:
    """`addresses` are our own as the listeners have them; `changed` is told when the verdict or what is reached changed."""

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        links: Callable[[], Iterable[Link]],
        trail: Trail,
        changed: Callable[[], None],
        *,
        open_mesh: bool,
    ) -> None:
        self.verdict: Verdict = "unknown"
        self.reached: list[str] = []
        """Addresses at which some helper reached us."""
        self.seen: list[str] = []
        """Those of them at a host that only others see."""
        self._addresses = addresses
        self._links = links
        self._trail = trail
        self._changed = changed
        self._open_mesh = open_mesh
        self._asked: Sequence[str] = []
        self._questions: dict[Link, _Question] = {}
        self._news = trio.Event()

    def look(self) -> None:
        """A link came up. Never blocks."""
        if self.verdict != "reachable":
            self._news.set()

    def hear(self, link: Link, answer: DialedBack) -> None:
        """A helper answered; what nobody asked is dropped."""
        question = self._questions.get(link)
        if question is not None:
            question.answer = answer
            question.answered.set()

    async def run(self) -> None:
        """Ask now and then until cancelled."""
        await self._news.wait()
        while True:
            await trio.sleep(SETTLE)
            self._news = trio.Event()
            await self._round()
            await trio.sleep(AGAIN)
            await self._wait(EVERY * random.uniform(0.8, 1.2))  # noqa: S311 - spreads questions, guards nothing

    async def _wait(self, limit: float) -> None:
        with trio.move_on_after(limit):
            while list(self._addresses()) == self._asked:
                with trio.move_on_after(WATCH):
                    await self._news.wait()
                    return

    async def _round(self) -> None:
        self._asked = list(self._addresses())
        answers: dict[Link, DialedBack] = {}

        async def ask(link: Link) -> None:
            answer = await self._ask(link)
            if answer is not None and not answer.code:
                answers[link] = answer

        async with trio.open_nursery() as nursery:
            for link in self._helpers():
                nursery.start_soon(ask, link)
        if answers:
            self._conclude(answers)

    def _helpers(self) -> list[Link]:
        able = [link for link in self._links() if FEATURE in link.hello.features and link.via is None and not link.leaving]
        return sorted(able, key=lambda link: link.record.role != "bootstrap")[:HELPERS]

    async def _ask(self, link: Link) -> DialedBack | None:
        """One helper's answer, the host that it sees us come from included."""
        answer = await self._question(link, self._asked)
        seen = self._seen(answer.seen_as) if answer is not None and not answer.reached and _chosen(link) else []
        return (await self._question(link, seen) or answer) if seen else answer

    async def _question(self, link: Link, addresses: Sequence[str]) -> DialedBack | None:
        self._questions[link] = question = _Question()
        try:
            link.send(DialBack(list(addresses)))
            with trio.move_on_after(ANSWER_LIMIT):
                await question.answered.wait()
            answer = question.answer
            reached = [] if answer is None else [one for one in addresses if one in answer.reached]
            return None if answer is None else msgspec.structs.replace(answer, reached=reached)
        finally:
            del self._questions[link]

    def _seen(self, seen_as: str) -> list[str]:
        """Our listeners at the host that a helper sees, where that is none of ours."""
        host = ip_of(f"{seen_as[:64]}:0")
        ours = [(one, ip) for one in self._asked if (ip := ip_of(one)) is not None]
        if host is None or any(ip == host for _, ip in ours):
            return []
        found = dict.fromkeys(at_host(one, host) for one, ip in ours if ip.version == host.version)
        return [one for one in found if not self._open_mesh or is_near(one)]

    def _conclude(self, answers: dict[Link, DialedBack]) -> None:
        before = self.verdict, self.reached
        asked = set(self._asked)
        self.reached = list(dict.fromkeys(address for answer in answers.values() for address in answer.reached))
        self.seen = [address for address in self.reached if address not in asked]
        self.verdict = "reachable" if all(answer.reached for answer in answers.values()) else "not reachable"
        for link, answer in answers.items():
            said = f"reached us at {answer.reached[0]}" if answer.reached else "could not reach us at any of our addresses"
            self._trail.add(WAY, link.peer_id, said, found=True)
        if (self.verdict, self.reached) != before:
            self._changed()


def _chosen(link: Link) -> bool:
    """True for a bootstrap peer that an operator gave us."""
    return link.dialled and link.record.role == "bootstrap"
