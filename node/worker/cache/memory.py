"""Who has which room in the cache: one extent for each running sequence, and the prefixes that were computed before.

1. A running sequence has an extent that holds its first `computed` tokens; one that waits has none and has computed nothing.
2. What is known of a sequence's beginning is copied, never computed again; its last token is always computed.
3. What a sequence computed is kept for others once its prompt is through and when it leaves, unless it may be bad.
4. A running sequence holds the prefix that it came from or left behind.
5. After a copy that failed nothing here can be trusted (`damaged`): nobody is admitted until `rebuild`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Places

    from mesh.messages.worker import CacheStats
    from node.worker.cache.extents import Extents
    from node.worker.cache.radix import RadixCache
    from node.worker.sequence import Sequence


_logger = logging.getLogger(__name__)


class Storage(Protocol):
    """What holds keys and values; see `node.worker.cache.arena.Arena`."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy consecutive tokens; the ranges may overlap."""
        ...

    def save(self, source: int, places: Places[int]) -> None:
        """Copy consecutive tokens to these places."""
        ...

    def restore(self, places: Places[int], target: int) -> None:
        """Copy these places to consecutive tokens."""
        ...

    def clear(self, start: int = 0, length: int | None = None) -> None:
        """Zero consecutive tokens, or all."""
        ...


class Nowhere:
    """The storage of a runner that keeps its state itself."""

    def move(self, source: int, target: int, length: int) -> None:
        """Nothing to do."""

    def save(self, source: int, places: Places[int]) -> None:
        """Nothing to do."""

    def restore(self, places: Places[int], target: int) -> None:
        """Nothing to do."""

    def clear(self, start: int = 0, length: int | None = None) -> None:
        """Nothing to do."""


class Memory:
    """The room of one engine."""

    def __init__(self, extents: Extents, prefixes: RadixCache, storage: Storage) -> None:
        self._extents = extents
        self._prefixes = prefixes
        self._storage = storage
        self.damaged = False

    @property
    def stats(self) -> CacheStats:
        """The counters of the prefix cache."""
        return self._prefixes.stats

    def unknown(self, sequence: Sequence) -> int:
        """How many tokens of a waiting sequence would have to be computed."""
        return len(sequence.tokens) - self._prefixes.known(sequence.tenant, sequence.tokens[:-1])

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence an extent with what is known of it; False while there is no room."""
        extent = None if self.damaged else self._extents.take(len(sequence.tokens))
        if extent is None:
            return False
        sequence.enter(extent)
        match = self._prefixes.match(sequence.tenant, sequence.tokens[:-1])
        if match is None:
            return True
        sequence.prefix = match.node
        sequence.computed = len(match.places)
        if not self._copied(self._storage.restore, match.places, extent.start):
            sequence.leave()
        return not self.damaged

    def lend(self, sequence: Sequence) -> bool:
        """Give a trial room while no request has any; what is known does not matter, and nothing is counted. False: none left."""
        extent = self._extents.take(len(sequence.tokens))
        if extent is not None:
            sequence.enter(extent)
        return extent is not None

    def extend(self, sequence: Sequence) -> bool:
        """Make room for all of a running sequence's tokens; False when there is none."""
        old = sequence.extent
        assert old is not None
        if len(sequence.tokens) <= old.capacity:
            return True
        if self.damaged:
            return False
        self._extents.give(old)
        new = self._extents.take(len(sequence.tokens))
        if new is None:
            self._extents.retake(old)
            return False
        sequence.extent = new
        return new.start == old.start or self._copied(self._storage.move, old.start, new.start, sequence.computed)

    def share(self, sequence: Sequence) -> None:
        """Keep what a running sequence has computed for others, and for itself."""
        if sequence.extent is None or self.damaged:
            return
        insertion = self._prefixes.insert(sequence.tenant, sequence.tokens[: sequence.computed])
        if insertion is None:
            return
        self._let_go(sequence)
        sequence.prefix = insertion.node
        if insertion.places:
            self._copied(self._storage.save, sequence.extent.start + insertion.start, insertion.places)

    def release(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a running sequence's room back. Without `keep` what it computed may be bad, and is erased."""
        assert sequence.extent is not None
        if keep:
            self.share(sequence)
        else:
            self._storage.clear(sequence.extent.start, sequence.extent.capacity)
        self._extents.give(sequence.extent)
        self._let_go(sequence)
        sequence.leave()

    def rebuild(self) -> None:
        """Erase everything. No sequence may have room any more."""
        self._extents.clear()
        self._prefixes.clear()
        self._storage.clear()
        self.damaged = False

    def _copied(self, copy: Callable[..., None], *places: Any) -> bool:
        try:
            copy(*places)
        # A device that ran out of memory or broke: what was copied is anybody's guess.
        except Exception:
            _logger.exception("keys and values could not be copied")
            self.damaged = True
        return not self.damaged

    def _let_go(self, sequence: Sequence) -> None:
        if sequence.prefix is not None:
            self._prefixes.drop(sequence.prefix)
            sequence.prefix = None
