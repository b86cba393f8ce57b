"""What one request gave out, in little memory: events in pages, of which all but the last are packed.

1. Positions count tokens over all choices, those of `prior` included; indices count events. An event without tokens stands behind
   the token before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mesh.messages.inference import Delta

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mesh.messages.inference import FinishReason

PAGE = 64

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Delta])


@dataclass(frozen=True)
class Before:
    """What was given out before one position: `index` is the event that follows, the lists go by choice."""

    index: int
    token_ids: list[list[int]]
    characters: list[int]
    ended: list[tuple[int, FinishReason]]


class OutputLog:
    """See the head of this file. `prior` as in the request."""

    def __init__(self, prior: Sequence[Sequence[int]] = ()) -> None:
        self.tokens = self.first = sum(map(len, prior))
        """The position behind the last token, and that of the first one that is here."""
        self._prior = prior
        self._pages: list[bytes] = []
        self._recent: list[Delta] = []

    def add(self, delta: Delta) -> int:
        """Take one event in. Returns by how many bytes the log grew: all of a page with its last event."""
        self.tokens += len(delta.token_ids)
        self._recent.append(delta)
        if len(self._recent) < PAGE:
            return 0
        page = _encoder.encode(self._recent)
        self._pages.append(page)
        self._recent = []
        return len(page)

    def page(self, index: int) -> list[Delta]:
        """The events from `index` on, to the end of its page; none at the end of the log."""
        number, skipped = divmod(index, PAGE)
        page = _decoder.decode(self._pages[number]) if number < len(self._pages) else self._recent
        return page[skipped:]

    def before(self, position: int) -> Before | None:
        """What came before the event that has the token at `position`; None when the position is not in the log."""
        if not self.first <= position <= self.tokens:
            return None
        found = Before(0, [list(ids) for ids in self._prior], [], [])
        index, at = 0, self.first
        for delta in self._events():
            after = at + len(delta.token_ids)
            if after > position or (after == position and not delta.token_ids):
                break
            _add(found, delta)
            index, at = index + 1, after
        return Before(index, found.token_ids, found.characters, found.ended)

    def _events(self) -> Iterator[Delta]:
        for page in self._pages:
            yield from _decoder.decode(page)
        yield from self._recent


def _add(found: Before, delta: Delta) -> None:
    missing = delta.choice + 1 - len(found.token_ids)
    found.token_ids.extend([] for _ in range(missing))
    found.characters.extend(0 for _ in range(delta.choice + 1 - len(found.characters)))
    found.token_ids[delta.choice].extend(delta.token_ids)
    found.characters[delta.choice] += len(delta.text)
    if delta.finish_reason is not None:
        found.ended.append((delta.choice, delta.finish_reason))
