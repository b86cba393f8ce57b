"""The account of every way that was tried."""

from __future__ import annotations

import pytest

from mesh.trail import MAX_ENTRIES, Trail


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
        ("mdns", "", ("mDNS it said no", "--bootstrap")),
        ("mdns", "unavailable", ("mDNS did not start: it said no",)),
        ("a record from X", "unavailable", ("heard of by a record from X",)),
    ],
)
def test_each_failure_is_a_sentence(trail, way, code, words):
    trail.add(way, "TARGET", "it said no", code=code)
    assert all(word in trail.explain()[0] for word in words)
