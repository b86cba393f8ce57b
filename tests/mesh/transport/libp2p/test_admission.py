from __future__ import annotations

import pytest
import trio

from mesh.transport.libp2p import admission
from mesh.transport.libp2p.admission import Admission, Allowance


class Room:
    """Connections that know only that they were told to end."""

    def __init__(self, limit: int = 100, max_unproven: int = 100) -> None:
        self.admission = Admission(limit, max_unproven)
        self.ended: list[str] = []
        self.linked: set[str] = set()

    def enter(self, name: str, host: str = "10.0.0.1"):
        return self.admission.enter(host, lambda: self.ended.append(name), lambda: name in self.linked)

    def prove(self, name: str, peer_id: str | None = None, host: str = "10.0.0.1") -> bool:
        place = self.enter(name, host)
        return place is not None and self.admission.prove(place, peer_id or name)


async def test_an_allowance_gives_a_burst_and_then_its_rate(autojump_clock):
    allowance = Allowance(3, 2.0)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    assert allowance.wait == 0.5
    await trio.sleep(allowance.wait)
    assert allowance.wait == 0
    assert [allowance.take() for _ in range(2)] == [True, False]
    await trio.sleep(1000)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]


async def test_the_oldest_unproven_one_of_the_busiest_address_makes_room():
    room = Room(max_unproven=3)
    assert room.enter("quiet", "10.0.0.9")
    for name in ("flood-1", "flood-2", "flood-3"):
        assert room.enter(name, "10.0.0.1")
    assert room.ended == ["flood-1"]
    assert room.enter("good", "10.0.0.2")
    assert room.ended == ["flood-1", "flood-2"]


async def test_who_had_to_make_room_proves_nothing_any_more():
    room = Room(max_unproven=1)
    place = room.enter("first")
    room.enter("second")
    assert room.ended == ["first"]
    assert not room.admission.prove(place, "first")
    assert len(room.admission) == 1


async def test_a_network_of_ipv6_addresses_is_one_address():
    room = Room(max_unproven=3)
    room.enter("good", "fd00:1::1")
    for last in range(5):
        room.enter(f"flood-{last}", f"fd00:2::{last + 1}")
    assert "good" not in room.ended
    assert len(room.ended) == 3


async def test_strangers_make_room_and_channels_do_not():
    room = Room(limit=3)
    room.linked.add("node")
    for name in ("node", "ping-1", "ping-2", "gateway"):
        assert room.prove(name)
    assert room.ended == ["ping-1"]
    room.linked.update(("ping-2", "gateway"))
    assert not room.prove("late")
    assert room.ended == ["ping-1"]
    assert len(room.admission) == 3


async def test_an_unproven_one_makes_room_where_nobody_else_can():
    room = Room(limit=2)
    room.linked.add("node")
    assert room.prove("node")
    room.enter("silent")
    assert room.enter("next")
    assert room.ended == ["silent"]


async def test_a_peer_has_only_so_many_connections_at_once(monkeypatch):
    monkeypatch.setattr(admission, "MAX_PER_PEER", 2)
    room = Room()
    assert [room.prove(f"{turn}", "greedy") for turn in range(3)] == [True, True, False]
    assert room.prove("other")


@pytest.mark.parametrize(("burst", "one_peer"), [("PEER_BURST", True), ("ADDRESS_BURST", False)])
async def test_who_comes_too_often_waits(autojump_clock, monkeypatch, burst, one_peer):
    monkeypatch.setattr(admission, burst, 3)
    room = Room()

    def come(turn: int) -> bool:
        place = room.enter("x")
        if place is None:
            return False
        allowed = room.admission.prove(place, "one" if one_peer else f"peer-{turn}")
        room.admission.leave(place)
        return allowed

    assert [come(turn) for turn in range(5)] == [True, True, True, False, False]
    assert room.prove("another", host="10.0.0.2")
    await trio.sleep(1)
    assert come(6)


async def test_silence_uses_nothing_of_an_address_up(monkeypatch):
    """Half-open connections cost no handshake, so they keep nobody of the same address out."""
    monkeypatch.setattr(admission, "ADDRESS_BURST", 3)
    room = Room(max_unproven=4)
    for turn in range(50):
        assert room.enter(f"{turn}")
    assert room.prove("good")


async def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(admission, "MAX_REMEMBERED", 10)
    room = Room()
    for turn in range(50):
        place = room.enter("x", f"10.0.1.{turn}")
        room.admission.prove(place, f"{turn}")
        room.admission.leave(place)
        room.admission.leave(place)
    assert len(room.admission) == 0
    assert len(room.admission._addresses) == len(room.admission._peers) == 10
