"""The account of every way that was tried."""

from __future__ import annotations

import pytest

from mesh.trail import MAX_ENTRIES, MAX_SENTENCES, Trail, how_to_join


@pytest.fixture
def trail() -> Trail:
    return Trail(lambda: 1.0)


def test_the_latest_outcome_of_each_way_and_target_is_kept(trail):
    trail.add("bootstrap", "/a", "refused", code="unavailable")
    trail.add("bootstrap", "/b", "refused", code="unavailable")
    trail.add("bootstrap", "/a", "is linked", found=True)
    assert list(trail) == ["bootstrap: /b: refused", "bootstrap: /a: is linked"]
    assert [entry.found for entry in trail.entries] == [False, True]


def test_it_is_bounded_and_the_oldest_go(trail):
    for number in range(MAX_ENTRIES + 50):
        trail.add("mdns", str(number), "heard")
    assert len(trail) == MAX_ENTRIES
    assert trail.entries[0].target == "50"


def test_nothing_needs_explaining_once_somebody_was_found(trail):
    trail.add("bootstrap", "/a", "refused", code="unavailable")
    trail.add("inbound", "peer", "is linked", found=True)
    assert trail.explain() == []


def test_nothing_was_tried(trail):
    first, second = trail.explain()
    assert "--bootstrap /ip4/" in first
    assert "--no-mdns" in second


@pytest.mark.parametrize(
    ("way", "code", "words"),
    [
        ("bootstrap", "unavailable", ("could not be used: it said no", "mesh doctor")),
        ("bootstrap", "other_mesh", ("answered, but it said no",)),
        ("bootstrap", "open_mesh", ("public address",)),
        ("bootstrap", "network_key", ("answered, but it said no",)),
        ("bootstrap", "", ("it said no",)),
        ("mdns", "", ("mDNS it said no", "start a node", "--bootstrap")),
        ("mdns", "heard", ("mDNS it said no, but there is no link yet",)),
        ("mdns", "deaf", ("multicast is blocked", "UDP port 5353", "--bootstrap")),
        ("mdns", "other_mesh", ("TARGET was heard, but it said no", "--mesh")),
        ("dht", "empty", ("The DHT has nobody", "--bootstrap")),
        ("dht", "", ("The DHT it said no.",)),
        ("dht", "unreachable", ("heard of by dht",)),
        ("mdns", "unavailable", ("mDNS did not start: it said no",)),
        ("a record from X", "unavailable", ("heard of by a record from X",)),
    ],
)
def test_each_failure_is_a_sentence(trail, way, code, words):
    trail.add(way, "TARGET", "it said no", code=code)
    assert all(word in trail.explain()[0] for word in words)


@pytest.mark.parametrize(
    ("outcome", "advice"),
    [
        ("/a: connection refused", "Nothing listens there"),
        ("/a: another peer answers there; its identity changed", "Copy the address anew"),
        ("/a: it takes the connection, then says nothing for 5 s", "the peer hangs"),
        ("/a: no answer within 5 s", "a firewall is between"),
        ("/a: it does not answer as a libp2p peer", "Some other program listens there"),
        ("/a: it is a libp2p peer, but not of this mesh program", "another libp2p program"),
        ("/a: no address is known for this name", "The host name does not exist"),
        ("/a: network is unreachable", "There is no route"),
        ("/a: no route to host", "There is no route"),
        ("/a: something new", "mesh doctor"),
    ],
)
def test_a_wrong_bootstrap_address_gets_the_advice_that_fits(trail, outcome, advice):
    trail.add("bootstrap", "/a", outcome, code="unreachable")
    assert advice in trail.explain()[0]


def test_the_target_is_named_once(trail):
    trail.add("bootstrap", "/a", "cannot reach the peer at any address: /a: connection refused", code="unreachable")
    assert trail.explain()[0].startswith("Bootstrap /a could not be used: connection refused. Nothing listens there: start")


def test_what_starts_a_node():
    here, far = "/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/10.0.0.1/tcp/1/p2p/x"
    assert how_to_join("default", [here, far], private=False) == f"`mesh-node --bootstrap {far}`"
    assert how_to_join("a b", [here], private=False) == f"`mesh-node --mesh 'a b' --bootstrap {here}`"
    assert how_to_join("default", [], private=False) == "`mesh-node --bootstrap ADDRESS`"
    assert "`mesh invite" in how_to_join("ours", [here], private=True)


@pytest.mark.parametrize(
    ("heard", "forbidden", "said"),
    [
        (0, 0, ["Linked with 1 other peer of the mesh, but no node was heard of"]),
        (3, 0, ["Linked with 1 other peer of the mesh, but with none of the 3 nodes that it knows"]),
        (2, 1, ["Linked with 1 other peer of the mesh, but with none of the 2 nodes", "Our own lists forbid 1 node of the mesh"]),
        (1, 1, ["Linked with 1 other peer of the mesh, but with no node,", "Our own lists forbid 1 node of the mesh"]),
    ],
)
def test_nodes_that_are_known_and_not_linked_are_not_said_to_be_unheard_of(trail, heard, forbidden, said):
    sentences = trail.explain_no_node(1, "`mesh-node`", heard=heard, forbidden=forbidden)
    assert [sentence.startswith(words) for sentence, words in zip(sentences, said, strict=True)] == [True] * len(said)


def test_where_the_operator_said_to_look_comes_first_and_the_rest_is_bounded(trail):
    for number in range(MAX_ENTRIES):
        trail.add("mdns", str(number), "it is in mesh 'x'", code="other_mesh")
    trail.add("bootstrap", "/a", "connection refused", code="unreachable")
    sentences = trail.explain_no_node(2, "`mesh-node`")
    assert sentences[0].startswith("Linked with 2 other peers")
    assert sentences[1].startswith("Bootstrap /a")
    assert len(sentences) == MAX_SENTENCES + 2
    assert sentences[-1] == f"And {MAX_ENTRIES - MAX_SENTENCES} more like these."
