"""One answer being made: how its next token is chosen, and what each token says to the client.

1. All state is a function of the request, the prompt and the tokens taken so far. `replay` brings another node to the same point.
2. The order for one row: bias and penalties, end tokens while they may not come, grammar, then `node.worker.sampling`.
3. What goes wrong in one answer's state is that answer's error; the others of the step are not touched.
4. A grammar begins to hold where a thought that the prompt opened has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from mesh.errors import BackendFailed, MeshError
from mesh.messages.inference import Delta
from node.worker.detokenizer import Detokenizer, TextStream
from node.worker.output.logprobs import token_logprob
from node.worker.output.penalties import Adjuster, Penalties, ban
from node.worker.output.speech import Said, Speech
from node.worker.sampling import Draw, sample

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor

    from mesh.messages.inference import FinishReason, TokenLogprob
    from node.worker.output.grammar import Constraint
    from node.worker.output.vocabulary import TokenBytes


class Pick(NamedTuple):
    """The token that was chosen."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """When an answer ends. `limit` and `least` count generated tokens."""

    tokens: Collection[int]
    limit: int
    least: int = 0
    ignored: bool = False
    """End tokens are tokens like others."""
    one_call: bool = False
    """The first whole tool call ends it."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """What a request asks for beyond the plain text."""

    penalties: Penalties = field(default_factory=Penalties)
    echo: str = ""
    alternatives: int | None = None
    spelled: Mapping[int, str] | None = None
    """Special tokens that mean something to the reader."""
    constraint: Constraint | None = None
    spelling: TokenBytes | None = None


class Choice:
    """See the head of this file."""

    def __init__(
        self,
        *,
        draw: Draw,
        stream: TextStream,
        speech: Speech,
        ending: Ending,
        prompt: Sequence[int],
        manner: Manner | None = None,
    ) -> None:
        self.position = 0
        self._draw = draw
        self._stream = stream
        self._speech = speech
        self._ending = ending
        self._manner = manner or Manner()
        self._adjuster = Adjuster(self._manner.penalties, prompt)

    @property
    def draw(self) -> Draw:
        """How the next token is drawn."""
        return replace(self._draw, position=self.position)

    @property
    def adjusts(self) -> bool:
        """The row of logits is changed before a token is drawn."""
        return not self._manner.penalties.neutral or self._waits or self._constraint is not None

    @property
    def _waits(self) -> bool:
        """It may not end yet."""
        return self.position < self._ending.least

    @property
    def _constraint(self) -> Constraint | None:
        """The grammar, where it holds."""
        return None if self._speech.thinking else self._manner.constraint

    def adjust(self, row: Tensor) -> None:
        """Change the logits of the next token in place. Raises MeshError."""
        self._adjuster.apply(row)
        if self._waits and not self._ending.ignored:
            ban(row, self._ending.tokens)
        if constraint := self._constraint:
            constraint.restrict(row)

    def pick(self, row: Tensor, token: int) -> Pick:
        """The token with what was asked to be told of it, from the model's own row."""
        manner = self._manner
        if manner.alternatives is None or manner.spelling is None:
            return Pick(token)
        return Pick(token, token_logprob(row, token, alternatives=manner.alternatives, spelling=manner.spelling))

    def replay(self, tokens: Sequence[int]) -> None:
        """Take tokens that another node has given out already."""
        for token in tokens:
            self.take(Pick(token))

    def take(self, pick: Pick) -> tuple[Delta, FinishReason | None]:
        """A token was generated: what it says, and whether it ends the answer. Raises MeshError."""
        offset, token = self.position, pick.token
        reason: FinishReason | None
        constraint = self._constraint
        self.position += 1
        self._adjuster.add(token)
        if token in self._ending.tokens and not self._ending.ignored:
            said, reason = self._speech.finish(self._stream.finish()), self._stopped()
        else:
            if constraint is not None:
                constraint.take(token)
            said, reason = self._continue(token)
        text = self._manner.echo + said.text if offset == 0 else said.text
        logprobs = [pick.logprob] if pick.logprob else []
        delta = Delta(
            offset=offset, token_ids=[token], text=text, reasoning=said.reasoning, tool_calls=said.calls, logprobs=logprobs
        )
        return delta, reason

    def _continue(self, token: int) -> tuple[Said, FinishReason | None]:
        spelled = (self._manner.spelled or {}).get(token, "")
        said = self._speech.push(self._stream.push(token, spelled=spelled, watched=self.position > self._ending.least))
        constraint = self._manner.constraint
        if self._stream.stopped:
            return self._with_rest(said, ""), self._stopped()
        if self._ending.one_call and self._speech.completed_calls:
            return said, "tool_calls"
        if constraint is not None and constraint.finished:
            return self._with_rest(said, self._stream.finish()), self._stopped()
        if self.position >= self._ending.limit:
            # The output must begin what the grammar allows, and a replacement character may not.
            said = self._with_rest(said, self._stream.finish(whole=constraint is None))
            return said, self._cut()
        return said, None

    def _with_rest(self, said: Said, text: str) -> Said:
        rest = self._speech.finish(text)
        return Said(said.text + rest.text, said.reasoning + rest.reasoning, [*said.calls, *rest.calls])

    def _cut(self) -> FinishReason:
        """It is at its limit; what was held back may have been a stop string after all."""
        return "stop" if self._stream.stopped else "length"

    def _stopped(self) -> FinishReason:
        return "tool_calls" if self._speech.called else "stop"


def computed_only() -> Choice:
    """For a sequence that is run to see its logits, and never gives anything out."""
    stream = TextStream(Detokenizer(None), ())
    return Choice(draw=Draw(temperature=0), stream=stream, speech=Speech(), ending=Ending(tokens=(), limit=1), prompt=())


def choose(logits: Tensor, choices: Sequence[Choice]) -> list[Pick | MeshError]:
    """The next token of each choice, from its row of `logits` [rows, vocabulary]; an error for a choice that has none."""
    failed: dict[int, MeshError] = {}
    adjusted = logits
    if any(choice.adjusts for choice in choices):
        adjusted = logits.float().clone()
        for row, choice in enumerate(choices):
            if choice.adjusts and (error := _adjusted(choice, adjusted[row])):
                failed[row] = error
    tokens = sample(adjusted, [choice.draw for choice in choices])
    picks = (choice.pick(logits[row], tokens[row]) for row, choice in enumerate(choices))
    return [failed.get(row, pick) for row, pick in enumerate(picks)]


def _adjusted(choice: Choice, row: Tensor) -> MeshError | None:
    """What went wrong, if anything; the row then is as good as any other."""
    try:
        choice.adjust(row)
    except MeshError as error:
        row.zero_()
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this answer's alone
        row.zero_()
        return BackendFailed(f"the answer's constraints broke: {type(error).__name__}", code="grammar_failed")
    return None
