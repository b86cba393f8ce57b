"""The radix tree against a plain dictionary of everything it should know."""

from __future__ import annotations

import random

import pytest

from node.worker.cache.radix import Insertion, RadixCache


class Pool:
    """A tree and what its places hold: each place remembers the token, and all before it, that was put there."""

    def __init__(self, pool: int, *, least: int = 1) -> None:
        self.tree = RadixCache(start=100, pool=pool, least=least)
        self.held: dict[int, tuple[str, tuple[int, ...]]] = {}

    def put(self, tenant: str, tokens: list[int], *, hold: bool = False) -> Insertion | None:
        insertion = self.tree.insert(tenant, tokens)
        if insertion is not None:
            for offset, place in enumerate(insertion.places, start=insertion.start + 1):
                self.held[place] = (tenant, tuple(tokens[:offset]))
            if not hold:
                self.tree.drop(insertion.node)
        return insertion

    def known(self, tenant: str, tokens: list[int]) -> int:
        """How much matches; every matched place must hold exactly this beginning."""
        match = self.tree.match(tenant, tokens)
        if match is None:
            return 0
        for length, place in enumerate(match.places, start=1):
            assert self.held[place] == (tenant, tuple(tokens[:length]))
        self.tree.drop(match.node)
        return len(match.places)


def test_a_match_is_exact_and_ends_anywhere() -> None:
    pool = Pool(100)
    pool.put("a", [1, 2, 3, 4, 5])
    assert pool.known("a", [1, 2, 3, 4, 5, 6]) == 5
    assert pool.known("a", [1, 2, 9]) == 2
    assert pool.known("a", [2, 3]) == 0
    pool.put("a", [1, 2, 9, 9])
    assert pool.known("a", [1, 2, 9, 9, 9]) == 4
    assert pool.known("a", [1, 2, 3, 4, 5]) == 5
    assert pool.tree.stats.node_count == 3
    assert pool.tree.stats.total_cached == 7


def test_tenants_know_nothing_of_each_other() -> None:
    pool = Pool(100)
    pool.put("a", [1, 2, 3])
    assert pool.known("b", [1, 2, 3]) == 0
    pool.put("b", [1, 2, 3])
    assert pool.tree.stats.total_cached == 6


def test_what_is_not_worth_a_copy_is_a_miss() -> None:
    pool = Pool(100, least=4)
    pool.put("a", [1, 2, 3, 4, 5])
    assert pool.known("a", [1, 2, 3]) == 0
    assert pool.known("a", [1, 2, 3, 4]) == 4
    stats = pool.tree.stats
    assert (stats.hits, stats.misses, stats.hit_rate) == (1, 1, 0.5)


def test_the_leaf_that_was_used_least_recently_goes_first() -> None:
    pool = Pool(9)
    pool.put("a", [1, 1, 1])
    pool.put("a", [2, 2, 2])
    pool.put("a", [3, 3, 3])
    assert pool.known("a", [1, 1, 1]) == 3
    pool.put("a", [4, 4])
    assert [pool.known("a", [token] * 3) for token in (1, 2, 3)] == [3, 0, 3]
    assert pool.tree.stats.evictions == 1


def test_a_branch_outlives_its_leaves() -> None:
    pool = Pool(6)
    pool.put("a", [1, 2, 3, 4])
    pool.put("a", [1, 2, 5, 6])
    pool.put("a", [7, 7])
    assert pool.known("a", [1, 2, 3, 4]) == 2
    assert pool.known("a", [1, 2, 5, 6]) == 4


def test_what_is_held_stays_and_what_does_not_fit_is_kept_in_part() -> None:
    pool = Pool(8)
    held = pool.put("a", [1, 2, 3, 4, 5, 6], hold=True)
    assert held
    assert pool.tree.stats.protected_size == 6
    pool.put("a", [9, 8, 7, 6])
    assert pool.known("a", [9, 8, 7, 6]) == 2
    assert pool.known("a", [1, 2, 3, 4, 5, 6]) == 6
    pool.tree.drop(held.node)
    assert (pool.tree.stats.protected_size, pool.tree.stats.evictable_size) == (0, 8)
    assert pool.put("a", [5] * 8)
    assert pool.known("a", [1, 2, 3]) == 0


def test_a_split_keeps_both_halves_held() -> None:
    pool = Pool(8)
    held = pool.put("a", [1, 2, 3, 4], hold=True)
    assert held
    pool.put("a", [1, 2, 9, 9])
    pool.put("a", [8] * 8)
    assert pool.known("a", [1, 2, 3, 4]) == 4
    pool.tree.drop(held.node)
    assert pool.tree.stats.protected_size == 0


def test_a_cache_of_nothing_keeps_nothing() -> None:
    pool = Pool(0)
    assert pool.put("a", [1, 2, 3]) is None
    assert pool.known("a", [1, 2, 3]) == 0
    assert pool.tree._roots == {}


def test_an_empty_tenant_leaves_no_root() -> None:
    pool = Pool(4)
    for tenant in range(100):
        pool.put(str(tenant), [1, 2, 3])
    assert len(pool.tree._roots) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_tree_is_right(seed: int) -> None:
    source = random.Random(seed)
    pool = Pool(60)
    holds: list[Insertion] = []
    for _ in range(1500):
        tenant = source.choice("ab")
        tokens = [source.randrange(3) for _ in range(source.randrange(1, 12))]
        kind = source.random()
        if kind < 0.4:
            hold = len(holds) < 3 and source.random() < 0.3
            insertion = pool.put(tenant, tokens, hold=hold)
            if hold and insertion:
                holds.append(insertion)
        elif kind < 0.5 and holds:
            pool.tree.drop(holds.pop(source.randrange(len(holds))).node)
        else:
            pool.known(tenant, tokens)
        _check(pool.tree, holds)


def _above(node: object) -> list[object]:
    path = []
    while node is not None:
        path.append(node)
        node = getattr(node, "parent", None)
    return path


def _check(tree: RadixCache, holds: list[Insertion]) -> None:
    """Count everything anew."""
    nodes = []
    stack = [(root, True) for root in tree._roots.values()]
    while stack:
        node, is_root = stack.pop()
        assert len(node.tokens) == len(node.places)
        assert is_root or node.tokens
        nodes.append(node)
        stack += [(child, False) for child in node.children.values()]
    places = [place for node in nodes for place in node.places]
    assert len(places) == len(set(places))
    assert len(places) + len(tree._free) == tree.capacity
    stats = tree.stats
    assert stats.node_count == sum(1 for node in nodes if node.parent is not None)
    protected = {id(node): len(node.tokens) for node in nodes if node.holders}
    assert stats.protected_size == sum(protected.values())
    assert {id(node) for held in holds for node in _above(held.node)} == {id(node) for node in nodes if node.holders}
