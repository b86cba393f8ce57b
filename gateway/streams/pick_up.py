"""Finds streams that another gateway began, and goes on with them.

1. The node that a token names is asked first; then all others that are linked, because the work may have moved; last, where the
   named one was not linked, it is waited for a little. Nobody is asked who does not know the question.
2. Only a look is taken here: the stream stays with its reader until the answer is really asked for.
3. What a node says is kept is its word: it counts only where it fits the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from gateway.streams.token import ResumeToken, not_found
from mesh.errors import Busy, MeshError
from mesh.link.features import ATTACH
from mesh.link.link import Link
from mesh.messages.inference import Kept
from mesh.messages.link import Attach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.dispatch import Dispatch
    from mesh.identity import PeerId
    from mesh.messages.inference import Event, InferenceRequest
    from mesh.registry import Registry, RegistryEvent
    from mesh.service import Emit

NAMED = 2.0
"""Seconds that the node of a token is waited for."""
LOOK = 3.0
"""Seconds for the answer to a look."""
MAX_ASKED = 64
MAX_LOOKS = 256
MAX_CHOICES = 128


@dataclass(frozen=True)
class FoundStream:
    """A stream that can be gone on with: an inference service for this one request."""

    kept: Kept
    keeper: PeerId
    dispatch: Dispatch

    @property
    def request(self) -> InferenceRequest:
        """What was asked, with what was given out as its `prior`."""
        return self.kept.request

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Go on with it. Raises as `Dispatch.infer`."""
        await self.dispatch.pick_up(request, emit, keeper=self.keeper, ended=[choice for choice, _ in self.kept.ended])


class Streams:
    """See the head of this file."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._registry: Registry = dispatch.router.registry
        self._looking = 0

    async def find(self, token: ResumeToken, tokens: int, *, tenant: str) -> FoundStream:
        """The stream behind its first `tokens` tokens. Raises NotFound(code="stream_not_found"), Busy."""
        if self._looking >= MAX_LOOKS:
            raise Busy(f"{MAX_LOOKS} streams are being looked for, the limit; try again in a second", retry_after=1)
        self._looking += 1
        try:
            wanted = Attach(keep=token.secret, tenant=tenant, tokens=tokens, follow=False)
            found = await self._search(token, wanted)
        finally:
            self._looking -= 1
        totals = self._dispatch.totals
        if found is None:
            totals.not_found += 1
            raise not_found()
        totals.picked_up += 1
        return found

    async def _search(self, token: ResumeToken, wanted: Attach) -> FoundStream | None:
        named = self._link_of(token)
        found = await self._ask([named] if named else [], wanted)
        found = found or await self._ask([link for link in self._keepers() if link is not named][:MAX_ASKED], wanted)
        if found is None and named is None and (named := await self._appearing(token)) is not None:
            found = await self._ask([named], wanted)
        return found

    async def _appearing(self, token: ResumeToken) -> Link | None:
        """The link to the node of a token, once there is one."""
        changed = trio.Event()

        def listen(_event: RegistryEvent) -> None:
            changed.set()

        unsubscribe = self._registry.subscribe(listen)
        try:
            with trio.move_on_after(NAMED):
                while (link := self._link_of(token)) is None:
                    await changed.wait()
                    changed = trio.Event()
        finally:
            unsubscribe()
        return link

    def _link_of(self, token: ResumeToken) -> Link | None:
        return next((link for link in self._keepers() if token.names(link.peer_id)), None)

    def _keepers(self) -> list[Link]:
        links = (view.link for view in self._registry.nodes())
        return [link for link in links if isinstance(link, Link) and ATTACH in link.features]

    async def _ask(self, links: Sequence[Link], wanted: Attach) -> FoundStream | None:
        """Ask all of them at once; the first that has it."""
        found: list[FoundStream] = []

        async def ask(link: Link) -> None:
            kept = await _look(link, wanted)
            if kept is not None:
                found.append(FoundStream(kept, link.peer_id, self._dispatch))
                nursery.cancel_scope.cancel()

        with trio.move_on_after(LOOK):
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(ask, link)
        return found[0] if found else None


async def _look(link: Link, wanted: Attach) -> Kept | None:
    events: list[Event] = []
    try:
        await link.attach(wanted, events.append)
    except MeshError:
        return None
    kept = events[0] if len(events) == 1 else None
    return kept if isinstance(kept, Kept) and _fits(kept, wanted) else None


def _fits(kept: Kept, wanted: Attach) -> bool:
    request = kept.request
    if request.keep != wanted.keep or request.tenant != wanted.tenant or not 1 <= request.n <= MAX_CHOICES:
        return False
    choices = [choice for choice, _ in kept.ended]
    return (
        max(len(request.prior), len(kept.characters)) <= request.n
        and sum(map(len, request.prior)) <= wanted.tokens
        and len(set(choices)) == len(choices)
        and all(0 <= choice < request.n for choice in choices)
        and request.task in ("chat", "completion")
    )
