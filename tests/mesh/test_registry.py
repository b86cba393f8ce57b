"""The registry: sequence and lifetime rules, who is there, and what listeners hear. Time is a number here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mesh.identity import Identity
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord
from mesh.record import open_record, seal
from mesh.registry import MAX_PEERS, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = Identity.from_seed(b"\x01" * 32)
NODE = Identity.from_seed(b"\x02" * 32)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(OWN.peer_id, mesh="test", clock=clock)


@pytest.fixture
def heard(registry: Registry) -> list[tuple[str, str]]:
    events: list[tuple[str, str]] = []
    registry.subscribe(lambda event: events.append((event.kind, event.peer.peer_id)))
    return events


def sealed(identity: Identity = NODE, **changes: Any) -> SealedRecord:
    values: dict[str, Any] = {
        "peer_id": identity.peer_id, "sequence": 5, "issued_at": 0, "ttl": 100, "role": "node", "name": "n", "mesh": "test",
        "version": "0", "addresses": [], "models": [ModelEntry(id="m", aliases=["a"], state="ready")],
    }  # fmt: skip
    return seal(identity, NodeRecord(**(values | changes)))


def link_of(record: SealedRecord, **states: str) -> Any:
    """What the registry looks at in a link."""
    opened = open_record(record)
    closed = SimpleNamespace(is_set=lambda: False)
    hello = SimpleNamespace(record=record, instance="one")
    load = {name: ModelLoad(state) for name, state in states.items()}  # type: ignore[arg-type]
    return SimpleNamespace(
        peer_id=opened.peer_id, hello=hello, record=opened, leaving=False, closed=closed, load=load, reason="it broke"
    )


def names(views: list[Any]) -> list[str]:
    return [view.record.name for view in views]


# Records


def test_only_a_higher_sequence_replaces_a_record(registry):
    assert registry.learn(sealed(name="first")) is not None
    view = registry.peers[NODE.peer_id]
    assert registry.learn(sealed(name="same")) is None
    assert registry.learn(sealed(name="older", sequence=4)) is None
    assert view.record.name == "first"
    assert registry.learn(sealed(name="newer", sequence=6)) is view
    assert view.record.name == "newer"


def test_our_own_record_another_mesh_and_forgeries_are_dropped(registry):
    good = sealed()
    assert registry.learn(sealed(OWN)) is None
    assert registry.learn(sealed(mesh="other")) is None
    assert registry.learn(SealedRecord(good.payload, bytes(64))) is None
    assert registry.learn(SealedRecord(b"junk", bytes(64))) is None
    assert registry.peers == {}


def test_a_forged_newer_record_does_not_touch_the_good_one(registry):
    registry.learn(sealed())
    forged = SealedRecord(sealed(sequence=9).payload, sealed().signature)
    assert registry.learn(forged) is None
    assert registry.peers[NODE.peer_id].record.sequence == 5


def test_a_record_dies_its_lifetime_after_receipt(registry, clock):
    registry.learn(sealed())
    clock.now += 99
    registry.expire()
    assert NODE.peer_id in registry.peers
    clock.now += 1
    registry.expire()
    assert registry.peers == {}


def test_the_age_of_a_record_counts_against_its_lifetime(registry, clock):
    assert registry.learn(sealed(), age=100) is None
    assert registry.learn(sealed(), age=70) is not None
    assert registry.age(registry.peers[NODE.peer_id]) == 70
    clock.now += 30
    registry.expire()
    assert registry.peers == {}


def test_a_negative_age_gives_no_longer_life(registry, clock):
    registry.learn(sealed(), age=-1e9)
    clock.now += 101
    registry.expire()
    assert registry.peers == {}


def test_a_linked_peer_does_not_expire(registry, clock):
    link = link_of(sealed())
    registry.linked(link)
    clock.now += 10_000
    registry.expire()
    assert names(registry.nodes()) == ["n"]
    registry.unlinked(link)
    clock.now += 99
    registry.expire()
    assert NODE.peer_id in registry.peers
    clock.now += 1
    registry.expire()
    assert registry.peers == {}


def test_a_withdrawn_record_does_not_come_back_by_way_of_others(registry, clock):
    registry.learn(sealed())
    registry.forget(NODE.peer_id, "leaves")
    assert registry.learn(sealed()) is None
    assert registry.learn(sealed(sequence=6)) is not None


def test_a_withdrawal_is_forgotten_in_the_end(registry, clock):
    registry.learn(sealed())
    registry.forget(NODE.peer_id, "leaves")
    clock.now += 100
    registry.expire()
    assert registry.learn(sealed()) is not None


def test_a_link_brings_a_withdrawn_peer_back(registry, heard):
    registry.linked(link_of(sealed()))
    registry.forget(NODE.peer_id, "leaves")
    registry.linked(link_of(sealed()))
    assert heard == [("joined", NODE.peer_id), ("left", NODE.peer_id), ("joined", NODE.peer_id)]
    registry.forget("nobody", "leaves")


def test_a_full_registry_evicts_unlinked_records_that_expire_first(registry, clock, monkeypatch):
    monkeypatch.setattr("mesh.registry.MAX_PEERS", 3)
    first, second, linked = Identity.generate(), Identity.generate(), Identity.generate()
    registry.linked(link_of(sealed(linked)))
    registry.learn(sealed(first))
    clock.now += 1
    registry.learn(sealed(second))
    assert registry.learn(sealed(NODE)) is not None
    assert set(registry.peers) == {linked.peer_id, second.peer_id, NODE.peer_id}


def test_a_registry_full_of_links_takes_no_more_records_but_more_links(registry, monkeypatch):
    monkeypatch.setattr("mesh.registry.MAX_PEERS", 2)
    for _ in range(2):
        registry.linked(link_of(sealed(Identity.generate())))
    assert registry.learn(sealed()) is None
    registry.linked(link_of(sealed()))
    assert len(registry.peers) == 3
    assert MAX_PEERS >= 10_000


def test_a_registry_flooded_with_names_drops_what_expires_first(registry, clock, monkeypatch):
    monkeypatch.setattr("mesh.registry.MAX_NAMES", 8)
    monkeypatch.setattr("mesh.registry.MAX_PEERS", 100)
    first, second, third = Identity.generate(), Identity.generate(), Identity.generate()
    models = [ModelEntry(id=f"m{number}") for number in range(4)]
    registry.linked(link_of(sealed(first, models=models[:1])))
    registry.learn(sealed(second, models=models[:3]))
    clock.now += 1
    registry.learn(sealed(third, models=models))
    assert set(registry.peers) == {first.peer_id, second.peer_id, third.peer_id}
    registry.learn(sealed(NODE, models=models[:1]))
    assert set(registry.peers) == {first.peer_id, third.peer_id, NODE.peer_id}
    registry.learn(sealed(NODE, models=[*models, ModelEntry(id="one more")], sequence=6))
    assert set(registry.peers) == {first.peer_id, NODE.peer_id}
    assert registry.announced.names == 6


def test_what_a_request_asks_opens_no_record_but_those_of_links(registry, monkeypatch):
    others = [Identity.generate() for _ in range(50)]
    for other in others:
        registry.learn(sealed(other))
    registry.linked(link_of(sealed()))
    names(registry.nodes("m"))  # What a link's peer says is opened once.
    opened = []
    monkeypatch.setattr("mesh.peer_view.read_unchecked", opened.append)
    assert [view.peer_id for view in registry.nodes("m")] == [NODE.peer_id]
    assert [view.peer_id for view in registry.nodes("a")] == [NODE.peer_id]
    assert [entry.id for entry in registry.catalog()] == ["m"]
    assert registry.announced.meant_by("a") == {"m"}
    assert len(registry.nodes()) == 1
    assert opened == []


def test_a_record_is_kept_open_only_while_there_is_a_link(registry, monkeypatch):
    link = link_of(sealed(name="opened"))
    registry.linked(link)
    view = registry.peers[NODE.peer_id]
    assert view.record is view.record
    registry.unlinked(link)
    assert view.record == open_record(view.sealed)
    assert view.record is not view.record
    assert (registry.nodes("m"), list(registry.announced.announcers("m"))) == ([], [view])


# Links


def test_joining_and_leaving_are_told_once(registry, heard):
    registry.learn(sealed())
    assert heard == []
    link = link_of(sealed())
    registry.linked(link)
    registry.unlinked(link)
    registry.unlinked(link)
    assert heard == [("joined", NODE.peer_id), ("left", NODE.peer_id)]
    assert NODE.peer_id in registry.peers


def test_a_second_link_takes_the_place_of_the_first_in_silence(registry, heard):
    first, second = link_of(sealed()), link_of(sealed())
    registry.linked(first)
    registry.linked(second)
    registry.unlinked(first)
    assert heard == [("joined", NODE.peer_id)]
    assert registry.peers[NODE.peer_id].link is second


def test_a_forgotten_peer_is_told_to_have_left_only_when_it_was_there(registry, heard):
    registry.learn(sealed())
    registry.forget(NODE.peer_id, "expired")
    assert heard == []


def test_a_changed_record_of_a_linked_peer_is_told_and_a_new_issue_is_not(registry, heard):
    registry.learn(sealed())
    registry.learn(sealed(name="other", sequence=6))
    registry.linked(link_of(sealed(name="other", sequence=6)))
    registry.learn(sealed(name="other", sequence=7, issued_at=9))
    registry.learn(sealed(name="third", sequence=8))
    assert heard == [("joined", NODE.peer_id), ("changed", NODE.peer_id)]


def test_a_model_that_changes_its_state_is_told(registry, heard):
    link = link_of(sealed(), m="ready")
    registry.linked(link)
    registry.beaten(link)
    link.load = {"m": ModelLoad("ready", running=5)}
    registry.beaten(link)
    assert heard == [("joined", NODE.peer_id)]
    link.load = {"m": ModelLoad("failed")}
    registry.beaten(link)
    assert heard[1:] == [("changed", NODE.peer_id)]
    assert registry.peers[NODE.peer_id].models[0].state == "failed"
    registry.beaten(link_of(sealed(), m="asleep"))
    assert len(heard) == 2


def test_a_listener_that_fails_does_not_keep_others_from_hearing(registry, caplog):
    def broken(_event: Any) -> None:
        raise RuntimeError("listener")

    later: list[str] = []
    registry.subscribe(broken)
    unsubscribe = registry.subscribe(lambda event: later.append(event.kind))
    registry.linked(link_of(sealed()))
    assert later == ["joined"]
    assert "listener" in caplog.text
    unsubscribe()
    unsubscribe()
    registry.forget(NODE.peer_id, "gone")
    assert later == ["joined"]


# Views


def test_nodes_are_those_with_a_live_link_that_do_not_leave(registry):
    gateway, leaving, dead = Identity.generate(), Identity.generate(), Identity.generate()
    registry.linked(link_of(sealed()))
    registry.linked(link_of(sealed(gateway, role="gateway", models=[])))
    registry.learn(sealed(Identity.generate()))
    going, gone = link_of(sealed(leaving)), link_of(sealed(dead))
    registry.linked(going)
    registry.linked(gone)
    going.leaving = True
    gone.closed = SimpleNamespace(is_set=lambda: True)
    assert [view.peer_id for view in registry.nodes()] == [NODE.peer_id]


def test_a_gateway_that_announces_models_serves_them_like_a_node(registry):
    gateway = Identity.generate()
    registry.linked(link_of(sealed(gateway, role="gateway")))
    assert [view.peer_id for view in registry.nodes("m")] == [gateway.peer_id]
    assert [entry.id for entry in registry.catalog()] == ["m"]


def test_what_we_serve_ourselves_is_there_while_it_names_models(registry, heard):
    ours = sealed(OWN, role="gateway")
    link = link_of(ours, m="ready")
    registry.serve(link, link.record, ours)
    registry.serve(link, link.record, ours)
    assert [view.peer_id for view in registry.nodes("m")] == [OWN.peer_id]
    link.load = {"m": ModelLoad("failed")}
    registry.serve(link, link.record, ours)
    assert registry.catalog()[0].state == "failed"
    assert registry.learn(sealed(OWN, sequence=9)) is None
    registry.serve(link, open_record(sealed(OWN, models=[])), ours)
    assert registry.nodes() == []
    assert [kind for kind, _ in heard] == ["joined", "changed", "left"]


def test_an_exact_id_beats_an_alias(registry):
    serving: Callable[[str], list[ModelEntry]] = lambda name: [ModelEntry(id=name, aliases=["a"], state="ready")]  # noqa: E731
    registry.linked(link_of(sealed(Identity.generate(), name="exact", models=serving("m"))))
    registry.linked(link_of(sealed(Identity.generate(), name="alias", models=[ModelEntry(id="x", aliases=["m"])])))
    assert names(registry.nodes("m")) == ["exact"]
    assert names(registry.nodes("a")) == ["exact"]
    assert names(registry.nodes("x")) == ["alias"]
    assert registry.nodes("nothing") == []


def test_the_catalog_holds_the_best_state_of_each_model_by_name(registry):
    first, second = Identity.generate(), Identity.generate()
    models = [ModelEntry(id="z", state="failed"), ModelEntry(id="b", state="ready")]
    registry.linked(link_of(sealed(first, models=models), z="loading", b="failed"))
    registry.linked(link_of(sealed(second, models=[ModelEntry(id="z", state="asleep"), ModelEntry(id="b", state="loading")])))
    assert [(entry.id, entry.state) for entry in registry.catalog()] == [("b", "loading"), ("z", "asleep")]


def test_the_newest_come_first(registry, clock):
    old, linked, fresh = Identity.generate(), Identity.generate(), Identity.generate()
    registry.linked(link_of(sealed(linked, name="linked")))
    registry.learn(sealed(old, name="old"), age=50)
    clock.now += 10
    registry.learn(sealed(fresh, name="fresh"), age=2)
    assert names(registry.newest(registry.peers.values(), 9)) == ["linked", "fresh", "old"]
    assert names(registry.newest(registry.peers.values(), 2)) == ["linked", "fresh"]
