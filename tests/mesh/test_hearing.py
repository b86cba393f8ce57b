"""What is noted of the ways of hearing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from mesh.errors import Unavailable
from mesh.hearing import INTERFACES, LOOK, PAUSE, Hearing
from mesh.trail import LOCAL, Trail


@dataclass
class Me:
    peer_id: str = "me"
    mesh: str = "ours"
    role: str = "gateway"
    addresses: list[str] = field(default_factory=list)


@dataclass
class Heard:
    peer_id: str
    mesh: str = "ours"
    role: str = "node"
    addresses: tuple[str, ...] = ()


@dataclass
class Way:
    """Hears what `say` is called with."""

    interfaces: tuple[str, ...] = ("lo 127.0.0.1", "eth0 10.0.0.1")
    heard_itself: bool = False
    error: Exception | None = None
    found: Any = None
    ended: bool = False

    def __call__(self, _peer: Any) -> Way:
        return self

    async def run(self, found: Any, *, task_status: Any) -> None:
        if self.error is not None:
            raise self.error
        self.found = found
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.ended = True


@pytest.fixture
def trail():
    return Trail()


async def outcome(trail: Trail, way: Way, seconds: float, found: Any = lambda *_: None) -> str:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Hearing({"mdns": way}, trail, found).run, Me())
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return trail.outcome("mdns", LOCAL)


async def test_deaf_until_it_hears_itself(trail, autojump_clock):
    way = Way()
    assert await outcome(trail, way, 1) == "has heard of nobody yet"
    assert await outcome(trail, way, LOOK + 1) == "has heard of nobody, not even itself, on lo 127.0.0.1, eth0 10.0.0.1"
    assert trail.entries[-1].code == "deaf"
    way.heard_itself = True
    assert await outcome(trail, way, LOOK + 1) == "has heard of nobody yet, on lo 127.0.0.1, eth0 10.0.0.1"
    assert trail.entries[-1].code == ""


async def test_a_sighting_is_passed_on_and_noted_and_not_overwritten(trail, autojump_clock):
    way, found = Way(), []
    async with trio.open_nursery() as nursery:
        hearing = Hearing({"mdns": way}, trail, lambda name, sighting: found.append((name, sighting.peer_id)))
        nursery.start_soon(hearing.run, Me())
        await trio.sleep(1)
        for one in (Heard("me"), Heard("stranger", mesh="theirs"), Heard("friend")):
            way.found(one)
        await trio.sleep(3 * LOOK)
        hearing.stop()
    assert way.ended
    assert found == [("mdns", "friend")]
    assert trail.outcome("mdns", LOCAL) == "last heard of node friend"
    assert trail.outcome("mdns", "stranger") == "it is in mesh 'theirs', not 'ours'"
    assert trail.outcome("mdns", "me") == ""


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (Unavailable("no interface", code="no_mdns"), "no interface", "no_mdns"),
        (ValueError("bug"), "it broke; the log says why", "broken"),
    ],
)
async def test_a_way_that_fails_ends_alone(trail, autojump_clock, caplog, error, said, code):
    other, found = Way(), []
    async with trio.open_nursery() as nursery:
        ways = {"mdns": Way(error=error), "other": other}
        nursery.start_soon(Hearing(ways, trail, lambda _, sighting: found.append(sighting.peer_id)).run, Me())
        await trio.sleep(5)
        other.found(Heard("friend"))
        nursery.cancel_scope.cancel()
    assert trail.outcome("mdns", LOCAL) == said
    assert [entry.code for entry in trail.entries if entry.way == "mdns"] == [code]
    assert found == ["friend"]
    assert ("Traceback" in caplog.text) == (code == "broken")


async def test_a_way_that_failed_is_tried_again_and_one_that_broke_is_not(trail, autojump_clock, caplog):
    failed, broken = Way(error=Unavailable("no interface", code="no_mdns")), Way(error=ValueError("bug"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Hearing({"mdns": failed, "other": broken}, trail, lambda *_: None).run, Me())
        await trio.sleep(3.5 * PAUSE)
        assert caplog.text.count("mdns does not work: no interface") == 1
        failed.error = broken.error = None
        await trio.sleep(PAUSE)
        assert failed.found is not None
        assert broken.found is None
        nursery.cancel_scope.cancel()


async def test_where_it_listens_is_noted_and_explains_nothing(trail, autojump_clock):
    way = Way(heard_itself=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Hearing({"mdns": way}, trail, lambda *_: None).run, Me())
        await trio.sleep(1)
        assert trail.outcome("mdns", INTERFACES) == "listens on lo 127.0.0.1, eth0 10.0.0.1"
        way.found(Heard("friend"))
        way.interfaces = ("lo 127.0.0.1", "wlan0 10.0.1.9")
        await trio.sleep(2 * LOOK)
        assert trail.outcome("mdns", INTERFACES) == "listens on lo 127.0.0.1, wlan0 10.0.1.9"
        assert not any("listens on" in sentence for sentence in trail.explain())
        way.interfaces = ()
        await trio.sleep(2 * LOOK)
        assert trail.outcome("mdns", INTERFACES) == "listens on no interface"
        nursery.cancel_scope.cancel()
