"""Which node has probably computed which beginnings of prompts: what this gateway sent where.

1. A hint, never a promise: it costs a slower choice when it is wrong, and is forgotten with the node's link or worker.
2. At most `MAX_REMEMBERED` blocks are remembered, the ones used last, with at most `MAX_HOLDERS` nodes each.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.identity import PeerId

MAX_REMEMBERED = 65_536
MAX_HOLDERS = 8
MAX_NODES = 4_096


class SeenPrefixes:
    """Of all models: a block's hash begins with its model."""

    def __init__(self, *, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._holders: OrderedDict[bytes, list[tuple[PeerId, int]]] = OrderedDict()
        self._lives: dict[PeerId, int] = {}
        """A new number whenever a node's cache begins anew: what it had before matches no longer."""
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._holders)

    def sent(self, node: PeerId, blocks: Sequence[bytes]) -> None:
        """The node computes these blocks, one after the other."""
        life = self._lives.get(node)
        if life is None:
            life = self._lives[node] = next(self._numbers)
            if len(self._lives) > MAX_NODES:
                del self._lives[next(iter(self._lives))]
        for block in blocks:
            holders = self._holders.pop(block, [])
            kept = [one for one in holders if one[0] != node][-(MAX_HOLDERS - 1) :]
            self._holders[block] = [*kept, (node, life)]
        while len(self._holders) > self._limit:
            self._holders.popitem(last=False)

    def held(self, blocks: Sequence[bytes]) -> dict[PeerId, int]:
        """How many of the blocks each node has, counted from the first one on without a gap."""
        held: dict[PeerId, int] = {}
        for place, block in enumerate(blocks):
            here = [node for node, life in self._holders.get(block, ()) if self._lives.get(node) == life]
            longer = [node for node in here if held.get(node, 0) == place]
            if not longer:
                break
            held.update(dict.fromkeys(longer, place + 1))
        return held

    def forget(self, node: PeerId) -> None:
        """Its cache is gone: its worker, or the link to it, was lost."""
        self._lives.pop(node, None)
