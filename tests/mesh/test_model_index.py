"""Names to views: what is added is found, what is removed leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.identity import Identity
from mesh.messages.record import ModelEntry, NodeRecord
from mesh.model_index import ModelIndex
from mesh.peer_view import MAX_ALIASES, MAX_OFFERS, PeerView
from mesh.record import seal


def view(*models: ModelEntry, role: Any = "node") -> PeerView:
    identity = Identity.generate()
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=100, role=role, name="n", mesh="m", version="0",
        addresses=[], models=list(models),
    )  # fmt: skip
    return PeerView(record, seal(identity, record), 0.0)


@pytest.fixture
def index() -> ModelIndex:
    return ModelIndex()


def test_views_are_found_by_id_and_by_alias(index):
    one = view(ModelEntry(id="a", aliases=["x"]), ModelEntry(id="b"))
    two = view(ModelEntry(id="a"), ModelEntry(id="c", aliases=["x"]))
    for each in (one, two):
        index.add(each)
    assert set(index.ids) == {"a", "b", "c"}
    assert list(index.announcers("a")) == [one, two]
    assert (list(index.announcers("c")), list(index.announcers("x"))) == ([two], [])
    assert index.meant_by("x") == {"a", "c"}
    assert index.called("x") == [one, two]
    index.remove(two)
    assert (index.meant_by("x"), index.called("x")) == ({"a"}, [one])
    assert set(index.ids) == {"a", "b"}


def test_nothing_is_left_of_what_was_removed(index):
    views = [view(ModelEntry(id="a", aliases=["x", "y"]), ModelEntry(id=f"m{number}")) for number in range(5)]
    for each in views:
        index.add(each)
    assert index.names == 5 * 4
    for each in views:
        index.remove(each)
    assert index.names == 0
    assert vars(index) == vars(ModelIndex())


def test_who_serves_and_has_nothing_that_works_is_known_apart(index):
    views = [view(), view(ModelEntry(id="a", state="failed")), view(ModelEntry(id="a", state="loading")), view(role="gateway")]
    for each in views:
        index.add(each)
    assert list(index.bare) == views[:2]
    index.remove(views[0])
    assert list(index.bare) == [views[1]]


def test_the_names_of_one_record_are_bounded():
    aliases = [f"alias-{number}" for number in range(MAX_ALIASES + 5)]
    many = view(*(ModelEntry(id=f"{number}") for number in range(MAX_OFFERS)), ModelEntry(id="beyond"))
    assert len(many.offers) == MAX_OFFERS
    assert len(view(ModelEntry(id="a", aliases=aliases)).offers[0].aliases) == MAX_ALIASES
