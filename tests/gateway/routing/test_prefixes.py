from gateway.routing.prefixes import MAX_HOLDERS, SeenPrefixes
from mesh.identity import PeerId

A, B = PeerId("a"), PeerId("b")
BLOCKS = [bytes([number]) for number in range(6)]


def test_a_node_has_what_it_was_sent_from_the_start_on():
    seen = SeenPrefixes()
    seen.sent(A, BLOCKS[:4])
    seen.sent(B, BLOCKS[:2])
    assert seen.held(BLOCKS) == {A: 4, B: 2}
    assert seen.held([b"other", *BLOCKS]) == {}


def test_a_gap_ends_what_a_node_has():
    seen = SeenPrefixes()
    seen.sent(A, [BLOCKS[0], BLOCKS[2]])
    assert seen.held(BLOCKS) == {A: 1}


def test_a_node_that_lost_its_cache_has_nothing_until_it_is_sent_something_again():
    seen = SeenPrefixes()
    seen.sent(A, BLOCKS)
    seen.forget(A)
    assert seen.held(BLOCKS) == {}
    seen.sent(A, BLOCKS[:1])
    assert seen.held(BLOCKS) == {A: 1}


def test_what_was_used_last_is_kept():
    seen = SeenPrefixes(limit=4)
    seen.sent(A, BLOCKS[:3])
    seen.sent(A, BLOCKS[:1])
    seen.sent(A, [b"x", b"y"])
    assert len(seen) == 4
    assert seen.held([BLOCKS[0]]) == {A: 1}
    assert seen.held([BLOCKS[1]]) == {}


def test_a_block_has_a_bounded_number_of_holders_the_newest():
    seen = SeenPrefixes()
    for number in range(3 * MAX_HOLDERS):
        seen.sent(PeerId(f"n{number}"), BLOCKS[:1])
    assert len(seen.held(BLOCKS)) == MAX_HOLDERS
    assert PeerId(f"n{3 * MAX_HOLDERS - 1}") in seen.held(BLOCKS)


def test_nodes_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("gateway.routing.prefixes.MAX_NODES", 2)
    seen = SeenPrefixes()
    for name in "abc":
        seen.sent(PeerId(name), [name.encode()])
    assert seen.held([b"a"]) == {}
    assert seen.held([b"c"]) == {PeerId("c"): 1}
