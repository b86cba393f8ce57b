"""One node working on a request: its time limits, and what is learned of it.

1. An attempt has one time limit at a time: until the first token, counted anew from `Accepted`; then between two tokens. While
   the client does not keep up there is none: its node is made to wait; nor until `Accepted` where the model may have to wake.
2. After the time limit, or a fault of its own, nothing that the node says is passed on.
3. Where the node counts its engine's steps, `stall.py` gives it up earlier than the time limit would.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.nonsense import sound_usage
from mesh.errors import BackendFailed, MeshError, TimedOut
from mesh.messages.inference import Accepted, Delta, Done

if TYPE_CHECKING:
    from gateway.delivery import Delivery
    from gateway.hedging import Race
    from gateway.observations import Observation
    from mesh.identity import PeerId
    from mesh.messages.inference import Event


class Attempt:
    """One node working on the request. `emit` is what its link calls; `scope` holds its time limit."""

    def __init__(
        self,
        node: PeerId,
        delivery: Delivery,
        seen: Observation,
        *,
        first_token: float,
        stall: float,
        numerics: str = "",
        resumes: bool = False,
        attaches: bool = False,
        may_sleep: bool = False,
        continues: bool = False,
        race: Race | None = None,
    ) -> None:
        """`numerics` as the node announces it. `resumes`: behind what another one gave; `attaches`: it goes on with its own.

        `may_sleep`: the model shares an accelerator there. Until its node accepts the request, that node's own limits hold.
        `race`: it is not alone. `continues`: where it gives text without tokens, another node could go on behind it.
        """
        self._node = node
        self._numerics = numerics
        self._resumes = resumes
        self._attaches = attaches
        self._continues = continues
        self._race = race
        self._beaten = False
        self._fault: MeshError | None = None
        self._tokens_before = delivery.tokens
        self._delivery = delivery
        self._seen = seen
        self._first_token = first_token
        self._stall = stall
        self._accepted = Accepted()
        self._sent_at = trio.current_time()
        self._first_at = self._last_at = 0.0
        self._queued = False
        self._waits_for_client = False
        self._may_sleep = may_sleep
        self._stalled = 0.0
        self.worst_gap = 0.0
        """Seconds; the longest wait for a token after the first."""
        self.moved_at = self._sent_at
        """When the node was last seen at work on the request."""
        self.scope = trio.CancelScope(deadline=math.inf if may_sleep else self._sent_at + first_token)
        delivery.course.take("asked")
        if race is not None:
            race.enter(self)

    def lose(self) -> None:
        """Another node was faster."""
        if self._first_at or self._beaten:
            return
        self._beaten = True
        # It takes at least so long: who only ever loses must not look fast for ever.
        if not self._queued and not self.scope.cancel_called:
            self._seen.saw_first_token(trio.current_time() - self._sent_at)
        self.scope.cancel()

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
        self._waits_for_client = True
        await self._delivery.room()
        self._waits_for_client = False
        self.moved_at = now = trio.current_time()
        self.scope.deadline = now + self._stall

    def since_progress(self, now: float) -> float:
        """Seconds since the node gave something or was let go on."""
        return 0.0 if self._waits_for_client else now - self.moved_at

    @property
    def first_token_after(self) -> float | None:
        """Seconds; None until there is one."""
        return self._first_at - self._sent_at if self._first_at else None

    def give_up(self, seconds: float) -> None:
        """The node has done nothing for so long."""
        self._stalled = seconds
        self._delivery.stalls += 1
        self.scope.cancel()

    def check(self) -> None:
        """Called when the link has returned: raises TimedOut or BackendFailed when the answer is not complete."""
        if self._delivery.ended or self._beaten:
            return
        if self._fault is not None:
            raise self._fault
        if not self.scope.cancelled_caught:
            raise BackendFailed("the node stopped without ending its answer; send the request again", code="incomplete_answer")
        if self._stalled:
            raise TimedOut(f"no token and no step of the engine for {self._stalled:.1f} s", code="engine_stalled")
        if self._first_at:
            raise TimedOut(f"no token for {self._stall:g} s", code="engine_stalled")
        raise TimedOut(f"no first token within {self._first_token:g} s; the node may be overloaded, try again later")

    def _on_accepted(self, event: Accepted) -> None:
        self._accepted = event
        self._queued = event.waiting > 0
        self._seen.reported(event.running, event.waiting, ended=False)
        self.moved_at = trio.current_time()
        if self.scope.cancel_called:
            return
        self._delivery.accept(self._node, event)
        if not self._first_at:
            self.scope.deadline = self.moved_at + self._first_token
            self._delivery.course.take("accepted")
        if self._may_sleep:
            # Waking is predicted by itself: what is learned here is how fast it is awake.
            self._sent_at = self.moved_at

    def _on_delta(self, event: Delta) -> None:
        now = trio.current_time()
        if self.scope.cancel_called:
            return
        if self._first_at:
            self.worst_gap = max(self.worst_gap, now - self.moved_at)
            # Moving a deadline costs more than a token is worth: only when half of it has gone.
            if self.scope.deadline - now < self._stall / 2:
                self.scope.deadline = now + self._stall
        try:
            if not self._first_at:
                self._delivery.check(event, anew=not (self._resumes or self._attaches))
                if not self._claim():
                    return
                self._win(now)
            self._last_at = self.moved_at = now
            self._delivery.take(event)
        except MeshError as error:
            self._fault = error
            self.scope.cancel()

    def _win(self, now: float) -> None:
        self._first_at = now
        self.scope.deadline = now + self._stall
        if not self._queued:
            self._seen.saw_first_token(now - self._sent_at)
        self._answer()

    def _claim(self) -> bool:
        return self._race is None or self._race.claim(self)

    def _answer(self) -> None:
        self._delivery.course.take("answered")
        if self._race is not None:
            # The other one may have been the last to accept.
            self._delivery.accept(self._node, self._accepted)
        if self._attaches:
            self._delivery.go_on(self._node, self._accepted)
        elif self._resumes:
            self._delivery.resume(self._node, self._accepted, self._numerics)
        else:
            self._delivery.start(self._node, self._accepted, self._numerics, continues=self._continues)

    def _on_done(self, event: Done) -> None:
        if self._delivery.ended or self.scope.cancel_called:
            return
        if not self._first_at:
            if not self._claim():
                return
            self._answer()
        self._seen.reported(event.running, event.waiting, ended=True)
        self._seen.saw_decode(self._last_at - self._first_at, self._delivery.tokens - self._tokens_before - 1)
        self._seen.saw_gap(self.worst_gap)
        self._seen.succeed(trio.current_time() - self._sent_at)
        self._delivery.finish(self._sound(event))

    def _sound(self, done: Done) -> Done:
        usage = sound_usage(done.usage, given=self._delivery.tokens, most=self._delivery.most_in_all)
        if usage is done.usage:
            return done
        self._seen.fault("absurd_usage")
        return msgspec.structs.replace(done, usage=usage)
