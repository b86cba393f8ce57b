"""One request's answer on its way to the client: what it has got, and where another node would have to go on.

1. The client sees at most one `Accepted`: it is held back until the first `Delta` or `Done`, so that it names the node that won.
2. The client sees each token once, in order: an event that leaves a gap, says a token again, belongs to no choice that was asked
   for or comes after the last token that the request allows, is not passed on.
3. Another node may go on behind the tokens in `given`, behind `text` where its service has no tokens and can do that, or start
   over while the client has seen nothing. An answer that is taken in one piece is held back until its `Done`, so that the client
   has seen nothing of it. One that grows over `MAX_HELD` events or `MAX_HELD_CHARACTERS` is not held any longer.
4. Going on is exact when all nodes of the answer compute alike: equal `numerics`. Behind a text it never is.
5. `keeper` is the node that works on it, if it keeps what it gives out: on another link to it the same work goes on.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.course import Course
from gateway.nonsense import MOST_TOKENS
from gateway.said import SaidText
from gateway.streams.token import ResumeToken
from mesh.errors import BackendFailed
from mesh.messages.inference import Delta
from mesh.service import room

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mesh.identity import PeerId
    from mesh.messages.inference import Accepted, Done, Event, InferenceRequest
    from mesh.service import Emit

MAX_HELD = 16_384
MAX_HELD_CHARACTERS = 1024 * 1024
MOST_PIECES_OF_A_TOKEN = 16
"""A service that knows no tokens may give a token in pieces: the bytes of its text, say."""
MAX_GIVEN = 262_144
"""Tokens of one answer that are kept to go on behind them: 1 MiB. Longer answers are not resumed."""


class Delivery:
    """What the client has got so far."""

    def __init__(self, emit: Emit, *, streamed: bool = True, resumable: bool = True, keep: bytes = b"", choices: int = 1) -> None:
        """`resumable`: the client wants another node to go on rather than an error; `keep` as in the request."""
        self._emit = emit
        self._choices = choices
        self.course = Course()
        self.begun_at: float | None = None
        """When the client was first told of a node."""
        self.most = MOST_TOKENS
        """Tokens that a choice can have."""
        self.text = SaidText()
        """What came without tokens."""
        self._streamed = streamed
        self._resumable = resumable
        self._keep_secret = keep
        self._told = False
        self._held: list[Event] = []
        self._characters = 0
        self.deadline = math.inf
        self.attempts = 0
        self.resumes = 0
        self.stalls = 0
        """Nodes that were given up because they did nothing."""
        self.exact = True
        self.node: PeerId | None = None
        self.keeper: PeerId | None = None
        self.numerics = ""
        """Of the nodes that answered so far; empty: not known."""
        self.done: Done | None = None
        self.given: dict[int, array[int]] = {}
        self._complete: set[int] = set()

    @property
    def tokens(self) -> int:
        """Generated so far, over all choices."""
        return sum(map(len, self.given.values()))

    @property
    def progress(self) -> int:
        """Tokens and pieces of text so far."""
        return self.tokens + self.text.pieces

    @property
    def most_in_all(self) -> int:
        """Tokens that all choices together can have."""
        return self.most * self._choices

    @property
    def started(self) -> bool:
        """True when the client has seen something, so that no other node may start over."""
        return self.ended or (self._streamed and self.node is not None)

    @property
    def ended(self) -> bool:
        """True when the answer is complete."""
        return self.done is not None

    @property
    def can_go_on(self) -> bool:
        """True when another node can continue behind what was given."""
        return self._resumable and not self.ended and not self.text.pieces and 0 < self.tokens <= MAX_GIVEN

    @property
    def can_continue(self) -> bool:
        """True when another node can continue behind the text that was given, in a way."""
        return self._resumable and self.started and not self.ended and not self.given and self.text.usable

    def continuing(self, request: InferenceRequest) -> InferenceRequest:
        """The request for the node that does."""
        return msgspec.structs.replace(request, prior=[], said=self.text.said)

    def going_on(self, request: InferenceRequest) -> InferenceRequest:
        """The request for the node that continues."""
        last = max(self.given, default=-1)
        return msgspec.structs.replace(request, prior=[list(self.given.get(choice, ())) for choice in range(last + 1)])

    def start(self, node: PeerId, accepted: Accepted, numerics: str, *, continues: bool = False) -> None:
        """Tell the client that `node` answers, from the first token on. What it has not seen of another one is forgotten.

        `continues`: another node could go on behind a text of it.
        """
        self.text.begin(kept=continues)
        self.numerics = numerics
        self.begun_at = self.begun_at or trio.current_time()
        self.given.clear()
        self._complete.clear()
        self._held.clear()
        self._characters = 0
        self._told = False
        self._tell(node, accepted)

    def resume(self, node: PeerId, accepted: Accepted, numerics: str) -> None:
        """`node` goes on behind what was given."""
        self.exact = self.exact and bool(numerics) and numerics == self.numerics
        self.resumes += 1
        self._tell(node, accepted)

    def pick_up(self, prior: Sequence[Sequence[int]], ended: Iterable[int], keeper: PeerId, numerics: str) -> None:
        """Another gateway gave the tokens of `prior`, and `keeper` has what follows. `ended` are the complete choices."""
        self.given = {choice: array("I", ids) for choice, ids in enumerate(prior)}
        self._complete = set(ended)
        self.keeper, self.numerics = keeper, numerics

    def go_on(self, node: PeerId, accepted: Accepted) -> None:
        """`node` goes on with its own work, on another link."""
        self._tell(node, accepted)

    def accept(self, node: PeerId, accepted: Accepted) -> None:
        """`node` works on it, and may have given nothing yet."""
        self.keeper = node if accepted.kept and self._keep_secret else None

    def _tell(self, node: PeerId, accepted: Accepted) -> None:
        self.node = node
        if self._told:
            return
        self._told = True
        token = str(ResumeToken.of(node, self._keep_secret)) if self.keeper == node else ""
        self.emit(
            msgspec.structs.replace(accepted, node=node, attempts=self.attempts, numerics=self.numerics, resume_token=token)
        )

    def check(self, first: Delta, *, anew: bool) -> None:
        """Called with the first output of a node, before the client is told of the node. Raises BackendFailed for nonsense."""
        self._check_choice(first)
        if first.token_ids:
            given = () if anew else self.given.get(first.choice, ())
            self._check_place(first, len(given))
            _as_tokens(first.token_ids)

    def take(self, delta: Delta) -> None:
        """Pass new output on. Raises BackendFailed when it does not begin where the last one ended."""
        self._check_choice(delta)
        if delta.choice in self._complete:
            # Who goes on with several choices says again how the complete ones ended.
            return
        if delta.finish_reason is not None:
            self._complete.add(delta.choice)
        if delta.token_ids:
            self._keep(delta)
        elif delta.text or delta.reasoning or delta.tool_calls:
            self.text.add(delta)
            if self.text.pieces > MOST_PIECES_OF_A_TOKEN * self.most_in_all:
                raise BackendFailed("the node goes on behind the last token that the request allows", code="too_many_tokens")
        self.emit(delta)

    def finish(self, done: Done) -> None:
        """The answer is complete."""
        self.done = msgspec.structs.replace(done, resumes=self.resumes, exact=self.exact) if self.resumes else done
        self.emit(self.done)

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

    def _keep(self, delta: Delta) -> None:
        given = self.given.get(delta.choice)
        if given is None:
            given = self.given[delta.choice] = array("I")
        self._check_place(delta, len(given))
        given.extend(_as_tokens(delta.token_ids))

    def _check_choice(self, delta: Delta) -> None:
        if not 0 <= delta.choice < self._choices:
            raise BackendFailed(f"the node answered for choice {delta.choice} of {self._choices}", code="bad_tokens")

    def _check_place(self, delta: Delta, due: int) -> None:
        if delta.offset != due:
            raise BackendFailed(f"the node gave token {delta.offset} where {due} was due", code="bad_tokens")
        if due + len(delta.token_ids) > self.most:
            raise BackendFailed("the node goes on behind the last token that the request allows", code="too_many_tokens")


def _as_tokens(ids: list[int]) -> array[int]:
    try:
        return array("I", ids)
    except (OverflowError, TypeError) as error:
        raise BackendFailed("the node gave a token id that is none", code="bad_tokens") from error
