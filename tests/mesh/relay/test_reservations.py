"""Who is asked to relay for us, in which order, and what happens when it refuses or goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.identity import Identity
from mesh.messages.record import NodeRecord
from mesh.messages.relay import Release, Reserve, Reserved
from mesh.record import seal
from mesh.registry import Registry
from mesh.relay import reservations
from mesh.relay.reservations import EVERY, REFUSED, Reservations
from mesh.trail import Trail


@dataclass(eq=False)
class FakeLink:
    """A link whose other side answers as the test says."""

    identity: Identity
    answer: Reserved | None = field(default_factory=Reserved)
    role: str = "node"
    rtt: float | None = None
    via: str | None = None
    carrier: str = "memory"
    leaving: bool = False
    reason: str = ""
    instance: str = "first"
    closed: trio.Event = field(default_factory=trio.Event)
    load: dict[str, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    keeper: Any = None

    @property
    def peer_id(self) -> Any:
        return self.identity.peer_id

    @property
    def record(self) -> NodeRecord:
        return NodeRecord(
            peer_id=self.peer_id, sequence=1, issued_at=0, ttl=120, role=self.role, name="x", mesh="m", version="1",
            addresses=[], relay=True,
        )  # fmt: skip

    @property
    def hello(self) -> Any:
        return SimpleNamespace(record=seal(self.identity, self.record), instance=self.instance)

    def send(self, message: Any) -> None:
        self.asked.append(message)
        if isinstance(message, Reserve) and self.answer is not None:
            self.keeper.hear(self, self.answer)


class Scene:
    def __init__(self) -> None:
        self.registry = Registry(Identity.generate().peer_id, mesh="m")
        self.trail = Trail()
        self.needed = True
        self.changes: list[list[str]] = []
        self.dialled: list[str] = []
        self.keeper = Reservations(
            self.registry,
            self.trail,
            needed=lambda: self.needed,
            changed=lambda: self.changes.append(self.keeper.relays),
            dial=lambda view: self.dialled.append(view.peer_id),
        )

    def link(self, **options: Any) -> FakeLink:
        link = FakeLink(options.pop("identity", None) or Identity.generate(), keeper=self.keeper, **options)
        self.registry.linked(link)
        self.keeper.look()
        return link

    def drop(self, link: FakeLink) -> None:
        link.closed.set()
        self.registry.unlinked(link)
        self.keeper.look()


@pytest.fixture
async def scene(nursery):
    built = Scene()
    nursery.start_soon(built.keeper.run)
    return built


async def test_bootstrap_peers_are_asked_first_then_near_ones_and_two_are_enough(scene, autojump_clock):
    far, near, unknown, bootstrap = (
        scene.link(rtt=0.5), scene.link(rtt=0.1), scene.link(), scene.link(role="bootstrap", rtt=0.9),
    )  # fmt: skip
    await trio.sleep(1)
    assert scene.keeper.relays == [bootstrap.peer_id, near.peer_id]
    assert (far.asked, unknown.asked) == ([], [])
    assert scene.changes == [scene.keeper.relays]
    assert scene.trail.outcome("relay", near.peer_id) == "reaches us for others"


async def test_who_can_be_dialled_asks_nobody_and_gives_back_what_it_has(scene, autojump_clock):
    scene.needed = False
    relay = scene.link()
    await trio.sleep(1)
    assert relay.asked == []
    scene.needed = True
    scene.keeper.look()
    await trio.sleep(1)
    scene.needed = False
    scene.keeper.look()
    await trio.sleep(1)
    assert relay.asked == [Reserve(), Release()]
    assert scene.changes[-1] == []


async def test_a_lost_relay_is_replaced_and_asked_again_when_it_is_back(scene, autojump_clock):
    first, second = scene.link(role="bootstrap"), scene.link()
    await trio.sleep(1)
    third = scene.link()
    scene.drop(first)
    assert scene.keeper.relays == [second.peer_id]
    await trio.sleep(1)
    assert scene.keeper.relays == [second.peer_id, third.peer_id]
    scene.drop(second)
    back = scene.link(identity=first.identity, role="bootstrap", instance="second")
    await trio.sleep(1)
    assert scene.keeper.relays == [third.peer_id, back.peer_id]


async def test_another_link_of_the_same_process_keeps_the_reservation_and_another_process_does_not(scene, autojump_clock):
    first = scene.link()
    await trio.sleep(1)
    same = scene.link(identity=first.identity)
    await trio.sleep(1)
    assert same.asked == []
    other = scene.link(identity=first.identity, instance="second")
    await trio.sleep(1)
    assert other.asked == [Reserve()]


async def test_a_refusal_is_told_and_not_answered_by_asking_again_at_once(scene, autojump_clock):
    relay = scene.link(answer=Reserved("relay_full", "it is\nfull"))
    await trio.sleep(REFUSED - 1)
    assert relay.asked == [Reserve()]
    assert scene.trail.outcome("relay", relay.peer_id) == "it is full"
    relay.answer = Reserved()
    await trio.sleep(EVERY + 1)
    assert scene.keeper.relays == [relay.peer_id]


async def test_a_relay_that_does_not_answer_is_not_waited_for(scene, autojump_clock):
    silent, other = scene.link(answer=None, role="bootstrap"), scene.link()
    await trio.sleep(reservations.ANSWER_LIMIT + 1)
    assert scene.keeper.relays == [other.peer_id]
    scene.keeper.hear(silent, Reserved())
    assert scene.keeper.relays == [other.peer_id], "nobody asked any more"


async def test_a_relay_behind_a_relay_is_none(scene, autojump_clock):
    relay = scene.link(via="another")
    await trio.sleep(EVERY + 1)
    assert relay.asked == []


async def test_where_no_linked_peer_relays_one_that_a_record_names_is_dialled(scene, autojump_clock):
    known = FakeLink(Identity.generate())
    scene.registry.learn(seal(known.identity, known.record))
    await trio.sleep(EVERY + 1)
    assert scene.dialled[0] == known.peer_id


async def test_the_memory_of_refusals_is_bounded(scene, monkeypatch, autojump_clock):
    monkeypatch.setattr(reservations, "MAX_REFUSALS", 2)
    for _ in range(4):
        scene.link(answer=Reserved("relay_off", "no"))
    await trio.sleep(1)
    assert len(scene.keeper._refused) == 2
