"""What was computed before, by its tokens: a radix tree for each tenant over one pool of places.

1. A match is exact, token by token; nothing is ever found by a hash alone, and nothing of another tenant's.
2. Every token of the tree has a place in the pool; a place belongs to one token.
3. A held node, and all above it, stays. Of the others the leaf that was used least recently goes first.
4. What does not fit, even after that, is not kept; its beginning is.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mesh.messages.worker import CacheStats

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False)
class Node:
    """`tokens` follow those of `parent`; `places` says where each lies. `holders`: how many hold it or something below it."""

    tokens: list[int]
    places: list[int]
    parent: Node | None
    tenant: str
    children: dict[int, Node]
    holders: int = 0
    used: int = 0


class Match(NamedTuple):
    """The node in which the match ends, and the places of all matched tokens."""

    node: Node
    places: list[int]


class Insertion(NamedTuple):
    """The node in which the inserted tokens end; from token `start` on they are new and belong at `places`."""

    node: Node
    start: int
    places: list[int]


class RadixCache:
    """`pool` tokens of the arena, from `start` on. Matches shorter than `least` are not worth a copy and count as misses."""

    def __init__(self, *, start: int, pool: int, least: int = 16) -> None:
        self.capacity = pool
        self._start = start
        self._least = least
        self._hits = self._misses = self._evictions = 0
        self._ticks = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        """Forget everything; the counters go on. Nobody may hold a node."""
        self._roots: dict[str, Node] = {}
        self._free = list(range(self._start + self.capacity - 1, self._start - 1, -1))
        self._protected = 0
        self._nodes = 0
        self._leaves: list[tuple[int, int, Node]] = []

    @property
    def stats(self) -> CacheStats:
        """The nine counters."""
        cached = self.capacity - len(self._free)
        looked = self._hits + self._misses
        return CacheStats(
            hit_rate=self._hits / looked if looked else 0.0,
            hits=self._hits,
            misses=self._misses,
            evictable_size=cached - self._protected,
            protected_size=self._protected,
            total_cached=cached,
            total_capacity=self.capacity,
            evictions=self._evictions,
            node_count=self._nodes,
        )

    def known(self, tenant: str, tokens: list[int]) -> int:
        """How many of the first tokens a match would find. Changes nothing."""
        root = self._roots.get(tenant)
        length = sum(common for _, common in _walk(root, tokens)) if root else 0
        return length if length >= self._least else 0

    def match(self, tenant: str, tokens: list[int]) -> Match | None:
        """The longest known beginning, held until `drop`. None, and a miss, when there is none worth having."""
        if self.known(tenant, tokens) < self._least:
            self._misses += 1
            return None
        self._hits += 1
        node, _ = self._descend(self._roots[tenant], tokens)
        self.hold(node)
        return Match(node, self._places(node))

    def insert(self, tenant: str, tokens: list[int]) -> Insertion | None:
        """Make tokens known and hold them until `drop`; whoever asks must fill the new places. None when nothing fits."""
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = Node([], [], None, tenant, {})
        node, start = self._descend(root, tokens)
        self.hold(node)
        count = min(len(tokens) - start, self._make_room(len(tokens) - start))
        places: list[int] = []
        if count:
            places = [self._free.pop() for _ in range(count)]
            node = self._append(node, tokens[start : start + count], places)
        if node.parent is None:
            self.drop(node)
            self._prune(node)
            return None
        return Insertion(node, start, places)

    def hold(self, node: Node) -> None:
        """Protect a node and all above it."""
        for each in _path(node):
            if not each.holders:
                self._protected += len(each.tokens)
            each.holders += 1

    def drop(self, node: Node) -> None:
        """Undo one `hold`."""
        for each in _path(node):
            each.holders -= 1
            if not each.holders:
                self._protected -= len(each.tokens)
        self._offer(node)

    def _append(self, parent: Node, tokens: list[int], places: list[int]) -> Node:
        """A new child of a held node; the hold goes down to it."""
        node = Node(tokens, places, parent, parent.tenant, {}, holders=1, used=next(self._ticks))
        parent.children[tokens[0]] = node
        self._protected += len(tokens)
        self._nodes += 1
        return node

    def _descend(self, root: Node, tokens: list[int]) -> tuple[Node, int]:
        """The node that ends with the longest known beginning, split off if need be, and the length of that."""
        tick, node, length = next(self._ticks), root, 0
        for child, common in list(_walk(root, tokens)):
            node = child if common == len(child.tokens) else self._split(child, common)
            node.used = tick
            length += common
        return node, length

    def _split(self, node: Node, length: int) -> Node:
        """Cut a node in two; returns the upper part."""
        assert node.parent is not None
        upper = Node(
            node.tokens[:length],
            node.places[:length],
            node.parent,
            node.tenant,
            {node.tokens[length]: node},
            node.holders,
            node.used,
        )
        node.parent.children[node.tokens[0]] = upper
        node.tokens, node.places, node.parent = node.tokens[length:], node.places[length:], upper
        self._nodes += 1
        return upper

    def _places(self, node: Node) -> list[int]:
        parts = [each.places for each in _path(node)]
        return [place for part in reversed(parts) for place in part]

    def _make_room(self, count: int) -> int:
        """Evict until `count` places are free or nothing more may go; how many are free."""
        while len(self._free) < count and self._leaves:
            self._evict()
        return len(self._free)

    def _evict(self) -> None:
        """Give up the leaf that was used least recently. Entries that no longer hold true are passed over."""
        used, _, node = heapq.heappop(self._leaves)
        if node.children or node.holders or not node.places:
            return
        if node.used != used:
            self._offer(node)
            return
        assert node.parent is not None
        del node.parent.children[node.tokens[0]]
        self._free += node.places
        node.places = []
        self._nodes -= 1
        self._evictions += 1
        self._offer(node.parent)
        self._prune(node.parent)

    def _offer(self, node: Node) -> None:
        """Remember a leaf that nobody holds as one that may go."""
        if node.parent is not None and node.places and not node.children and not node.holders:
            heapq.heappush(self._leaves, (node.used, id(node), node))
        if len(self._leaves) > 64 + 4 * self._nodes:
            self._leaves = [entry for entry in self._leaves if entry[2].places and entry[2].used == entry[0]]
            heapq.heapify(self._leaves)

    def _prune(self, root: Node) -> None:
        if root.parent is None and not root.children and not root.holders:
            self._roots.pop(root.tenant, None)


def _walk(root: Node, tokens: list[int]) -> Iterator[tuple[Node, int]]:
    """The nodes along the tokens, each with how many of its own tokens match; only the last one may match in part."""
    node, position = root, 0
    while position < len(tokens) and (child := node.children.get(tokens[position])) is not None:
        common = _common(child.tokens, tokens, position)
        yield child, common
        if common < len(child.tokens):
            return
        node, position = child, position + common


def _common(own: list[int], tokens: list[int], position: int) -> int:
    """How many tokens of a node equal those from `position` on: at least one. Slices compare much faster than a loop."""
    low, high = 1, min(len(own), len(tokens) - position)
    if own[:high] == tokens[position : position + high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if own[:middle] == tokens[position : position + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _path(node: Node) -> Iterator[Node]:
    """The node and all above it, up to its root."""
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent
