"""One request's answer on its way to the client, and the attempts of single nodes to give it.

1. The client sees at most one `Accepted`: it is held back until the first `Delta` or `Done`, so that it names the node that won.
2. After the first `Delta` the answer belongs to that node: what another attempt would say is never mixed in. An answer that is
   taken in one piece is held back until its `Done`: until then the next attempt may start over. One that grows over `MAX_HELD`
   events or `MAX_HELD_CHARACTERS` is not held any longer.
3. `Delivery.tokens` counts what the client has of each choice: where another node would have to go on.
4. An attempt has one time limit at a time: until the first token, counted anew from `Accepted`; then between two tokens. While
   the client does not keep up there is none: its node is made to wait.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, TimedOut
from mesh.messages.inference import Accepted, Delta, Done
from mesh.service import room

if TYPE_CHECKING:
    from gateway.observations import Observation
    from mesh.identity import PeerId
    from mesh.messages.inference import Event
    from mesh.service import Emit


MAX_HELD = 16_384
MAX_HELD_CHARACTERS = 1024 * 1024


class Delivery:
    """What the client has got so far."""

    def __init__(self, emit: Emit, *, streamed: bool = True) -> None:
        self._emit = emit
        self._streamed = streamed
        self._held: list[Event] = []
        self._characters = 0
        self.deadline = math.inf
        self.attempts = 0
        self.node: PeerId | None = None
        self.done: Done | None = None
        self.tokens: dict[int, int] = {}

    @property
    def started(self) -> bool:
        """True when the client has seen something, so that no other node may start over."""
        return self.ended or (self._streamed and self.node is not None)

    @property
    def ended(self) -> bool:
        """True when the answer is complete."""
        return self.done is not None

    def start(self, node: PeerId, accepted: Accepted) -> None:
        """Tell the client that `node` answers. What an earlier attempt said and the client has not seen is forgotten."""
        self.node = node
        self.tokens.clear()
        self._held.clear()
        self._characters = 0
        self.emit(msgspec.structs.replace(accepted, node=node, attempts=self.attempts))

    def emit(self, event: Event) -> None:
        """Pass on one event, or keep it until the answer is complete."""
        if self._streamed:
            self._emit(event)
            return
        self._held.append(event)
        self._characters += len(event.text) if isinstance(event, Delta) else 0
        if self.ended or len(self._held) > MAX_HELD or self._characters > MAX_HELD_CHARACTERS:
            self._streamed = True
            held, self._held = self._held, []
            for one in held:
                self._emit(one)

    async def room(self) -> None:
        """Wait until the client has read most of what was passed on."""
        await room(self._emit)


class Attempt:
    """One node working on the request. `emit` is what its link calls; `scope` holds its time limit."""

    def __init__(self, node: PeerId, delivery: Delivery, seen: Observation, *, first_token: float, stall: float) -> None:
        self._node = node
        self._delivery = delivery
        self._seen = seen
        self._first_token = first_token
        self._stall = stall
        self._accepted = Accepted()
        self._sent_at = trio.current_time()
        self._first_at = self._last_at = 0.0
        self._queued = False
        self.scope = trio.CancelScope(deadline=self._sent_at + first_token)

    def emit(self, event: Event) -> None:
        """Pass on one event of the node. One that comes after the time limit is dropped."""
        if isinstance(event, Delta):
            self._on_delta(event)
        elif isinstance(event, Accepted):
            self._on_accepted(event)
        elif isinstance(event, Done):
            self._on_done(event)

    async def room(self) -> None:
        """Wait for the client; meanwhile the node is not late."""
        self.scope.deadline = math.inf
        await self._delivery.room()
        self.scope.deadline = trio.current_time() + self._stall

    def check(self) -> None:
        """Called when the link has returned: raises TimedOut or BackendFailed when the answer is not complete."""
        if self._delivery.ended:
            return
        if not self.scope.cancelled_caught:
            raise BackendFailed("the node stopped without ending its answer; send the request again", code="incomplete_answer")
        if self._first_at:
            raise TimedOut(f"no token for {self._stall:g} s", code="engine_stalled")
        raise TimedOut(f"no first token within {self._first_token:g} s; the node may be overloaded, try again later")

    def _on_accepted(self, event: Accepted) -> None:
        self._accepted = event
        self._queued = event.waiting > 0
        self._seen.reported(event.running, event.waiting, ended=False)
        if not self._first_at:
            self.scope.deadline = trio.current_time() + self._first_token

    def _on_delta(self, event: Delta) -> None:
        now = trio.current_time()
        if not self._first_at and not self._win(now):
            return
        self._last_at = now
        # Moving a deadline costs more than a token is worth: only when half of it has gone.
        if self.scope.deadline - now < self._stall / 2:
            self.scope.deadline = now + self._stall
        self._delivery.tokens[event.choice] = event.offset + len(event.token_ids)
        self._delivery.emit(event)

    def _win(self, now: float) -> bool:
        if self.scope.cancel_called:
            return False
        self._first_at = now
        self.scope.deadline = now + self._stall
        if not self._queued:
            self._seen.saw_first_token(now - self._sent_at)
        self._delivery.start(self._node, self._accepted)
        return True

    def _on_done(self, event: Done) -> None:
        if self._delivery.ended or self.scope.cancel_called:
            return
        if not self._first_at:
            self._delivery.start(self._node, self._accepted)
        self._delivery.done = event
        self._seen.reported(event.running, event.waiting, ended=True)
        self._seen.saw_decode(self._last_at - self._first_at, sum(self._delivery.tokens.values()) - 1)
        self._seen.succeed(trio.current_time() - self._sent_at)
        self._delivery.emit(event)
