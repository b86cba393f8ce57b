"""From token ids to text, a piece at a time.

1. The pieces of a stream, joined, are what the tokenizer makes of all its ids (special tokens skipped, no clean-up).
2. A piece never ends inside a character: bytes that may still become one are held back, at most until `flush`.
3. Text that may be the beginning of a stop string is held back; a stop string and what follows it is never given out.
4. Where a tokenizer spells rare characters in byte tokens (`<0xE4>`), a run of them is decoded as a whole, so it is held back
   until it ends. A special token, which is skipped, does not end it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class TokenKinds:
    """The ids that end no text of their own: byte tokens and special tokens."""

    bytes: frozenset[int] = frozenset()
    special: frozenset[int] = frozenset()


class Detokenizer:
    """Decodes one stream. Only the ids since the last piece but one are decoded again, so a step costs the same throughout."""

    def __init__(self, tokenizer: Any, tokens: TokenKinds | None = None) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens or TokenKinds()
        self._ids: list[int] = []
        self._context = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        quiet = token in self._tokens.bytes or token in self._tokens.special
        return "" if quiet else self._piece(final=False)

    def flush(self) -> str:
        """What is still held back, as the tokenizer decodes it when nothing follows."""
        return self._piece(final=True)

    def _piece(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._given])
        now = self._decode(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(UNFINISHED) and not final):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def token_kinds(tokenizer: Any) -> TokenKinds:
    """Look a tokenizer's vocabulary through. Byte-level vocabularies have no byte tokens and need no such care."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    names = (f"<0x{byte:02X}>" for byte in range(256))
    return TokenKinds(
        bytes=frozenset(vocabulary[name] for name in names if name in vocabulary),
        special=frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special),
    )


class StopMatcher:
    """Watches a stream of text for stop strings. `matched` is set once one was found; nothing is given out from then on."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that can no longer be part of a stop string."""
        if self.matched or not self._stops:
            return "" if self.matched else text
        self._held += text
        cuts = [cut for cut in map(self._held.find, self._stops) if cut >= 0]
        if cuts:
            self.matched = True
            given, self._held = self._held[: min(cuts)], ""
            return given
        keep = self._beginning()
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def flush(self) -> str:
        """What is held back when the stream ends without a match."""
        given, self._held = self._held, ""
        return given

    def _beginning(self) -> int:
        """How many characters at the end may begin a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


class TextStream:
    """One choice's text: what `Delta.text` carries, token by token."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """A stop string appeared."""
        return self._matcher.matched

    def push(self, token: int, *, spelled: str = "", watched: bool = True) -> str:
        """The text that may be given out after this token.

        `spelled` stands for a special token that means something to the reader. What is not `watched` is in no stop string.
        """
        held = self._detokenizer.flush() if spelled else ""
        text = held + self._detokenizer.push(token) + spelled
        return self._matcher.push(text) if watched else text

    def finish(self, *, whole: bool = True) -> str:
        """The rest, when no token follows. Without `whole`, a character of which bytes are missing is left out."""
        text = self._matcher.push(self._detokenizer.flush()) if whole else ""
        return text + self._matcher.flush()
