"""Output that must match a grammar: which tokens may come next.

1. A grammar is compiled once and kept, at most `MOST_KEPT` of them; each answer works on a copy of its own.
2. What an answer may say next is a function of the tokens it has said, so replaying them elsewhere rebuilds the state.
3. A grammar that cannot be compiled, or that allows nothing, is the client's error and names its field.
4. Compiling may take seconds, and some grammars would end the process: each is compiled elsewhere first (`rehearsal`), and those
   that fail there are remembered. It may be called from any thread.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from mesh.errors import BackendFailed, BadRequest
from node.worker.output.rehearsal import LONGEST, Rehearsal, Words

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

MOST_KEPT = 64
LONGEST_GRAMMAR = 256 * 1024
"""Characters of a grammar's text."""
MOST_SAID = 400
"""Characters of what the library says about one."""


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Nothing more can follow."""
        return bool(self._matcher.is_stopped())

    def restrict(self, row: Tensor) -> None:
        """Make every token impossible that must not come next. Raises BadRequest when the grammar gives up."""
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise BadRequest(f"the grammar gave up: {_reason(self._matcher)}; simplify it", code="grammar_failed")
        words = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        allowed = ((words[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).view(-1).bool()
        forbidden = torch.ones(row.shape[0], dtype=torch.bool)
        size = min(row.shape[0], allowed.shape[0])
        forbidden[:size] = ~allowed[:size]
        row.masked_fill_(forbidden.to(row.device), -math.inf)

    def take(self, token: int) -> None:
        """A token was generated. Raises BackendFailed when it does not fit."""
        if not self._matcher.consume_token(token):
            raise BackendFailed(f"token {token} does not fit the grammar: {_reason(self._matcher)}", code="grammar_failed")


def _reason(matcher: Any) -> str:
    """What the library says, without the dump of its state that follows."""
    said: str = matcher.get_error()
    return " ".join(said.partition("<state>")[0].split())[:MOST_SAID]


class Grammars:
    """The grammars of one model. `vocabulary` is the number of rows of its embedding."""

    def __init__(self, tokenizer: Any, *, vocabulary: int, end_tokens: Collection[int], longest: float = LONGEST) -> None:
        """`longest`: seconds that compiling may take."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = sorted(end_tokens)
        self._longest = longest
        self._words: Any = None
        self._rehearsal: Rehearsal | None = None
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._refused: OrderedDict[str, str] = OrderedDict()
        """Why grammars could not be compiled, without the field that they came in."""
        self._lock = threading.Lock()

    def knows(self, grammar: str) -> bool:
        """It is compiled already, or known to be too much."""
        with self._lock:
            return grammar in self._kept or grammar in self._refused

    def constraint(self, grammar: str, *, param: str) -> Constraint:
        """A fresh one for this grammar in the library's form, compiled if it must be. Raises BadRequest."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return Constraint(self._kept[grammar].deep_copy())
            if (reason := self._refused.get(grammar)) is not None:
                raise _too_complex(param, reason)
        matcher = self._compile(grammar, param)
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return Constraint(matcher.deep_copy())

    def _compile(self, grammar: str, param: str) -> Any:
        if len(grammar) > LONGEST_GRAMMAR:
            raise BadRequest(
                f"{param} has {len(grammar)} characters and may have {LONGEST_GRAMMAR}", code="grammar_too_large", param=param
            )
        words, rehearsal = self._prepared(param)
        if reason := rehearsal.fails(grammar):
            with self._lock:
                self._refused[grammar] = reason
                while len(self._refused) > MOST_KEPT:
                    self._refused.popitem(last=False)
            raise _too_complex(param, reason)
        # Imported late: most workers are never asked for it.
        from llguidance import LLMatcher

        matcher = LLMatcher(words, grammar, log_level=0)
        if matcher.is_error():
            raise BadRequest(f"{param} cannot be followed: {_reason(matcher)}", code="invalid_grammar", param=param)
        return matcher

    def _prepared(self, param: str) -> tuple[Any, Rehearsal]:
        if not self._end_tokens:
            raise BadRequest(f"{param}: this model has no end token", code="unsupported_parameter", param=param)
        with self._lock:
            if self._rehearsal is None:
                words, self._words = self._prepare(param)
                self._rehearsal = Rehearsal(words, longest=self._longest)
            return self._words, self._rehearsal

    def _prepare(self, param: str) -> tuple[Words, Any]:
        try:
            import llguidance  # noqa: F401 - only to see whether it is there
        except ImportError as error:
            raise BadRequest(
                f"{param} needs the package llguidance, which this node lacks; install infermesh with its extra `worker`",
                code="unsupported_parameter",
                param=param,
            ) from error
        try:
            words = Words(_spelled(self._tokenizer), self._vocabulary, self._end_tokens)
            return words, words.read()
        # A tokenizer that the library cannot read is a fact about the model, whatever it raises.
        except Exception as error:
            raise BadRequest(
                f"{param}: this model's output cannot be constrained ({type(error).__name__})",
                code="unsupported_parameter",
                param=param,
            ) from error


def _spelled(tokenizer: Any) -> str:
    """A fast tokenizer as JSON; what pads or cuts texts is no part of it. Raises whatever is wrong with others."""
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    return text


def _too_complex(param: str, reason: str) -> BadRequest:
    return BadRequest(f"{param} {reason}; simplify it", code="grammar_too_complex", param=param)
