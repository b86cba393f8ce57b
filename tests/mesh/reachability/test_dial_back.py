"""Dialling back on the word of a stranger: what is tried, and everything that is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.messages.reachability import DialBack, DialedBack
from mesh.reachability import dial_back
from mesh.reachability.dial_back import BURST, EVERY, MAX_ADDRESSES, MAX_TRIES, TRY_LIMIT, DialBacks
from mesh.transport.streams import NoStreams

ASKER = Identity.from_seed(b"asker" * 6 + b"..").peer_id
OTHER = Identity.from_seed(b"other" * 6 + b"..").peer_id


@dataclass(eq=False)
class FakeLink:
    peer_id: str = ASKER
    remote_address: str = "/ip4/192.168.1.9/tcp/50000"
    via: str | None = None
    sent: list[DialedBack] = field(default_factory=list)

    def send(self, message: DialedBack) -> None:
        self.sent.append(message)


class Probes(NoStreams):
    """Notes what is dialled."""

    def __init__(self, *, answers: bool = True, takes: float = 0.0) -> None:
        self.dialled: list[str] = []
        self.at_once = self.most = 0
        self._answers = answers
        self._takes = takes

    async def probe(self, address: str) -> None:
        self.dialled.append(address)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await trio.sleep(self._takes)
        finally:
            self.at_once -= 1
        if not self._answers:
            raise Unavailable("nobody is there")


def at(host: str, port: int = 4001, peer_id: str = ASKER) -> str:
    return f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}/p2p/{peer_id}"


def helper(probes: Probes, announced: Any = (), *, open_mesh: bool = True) -> DialBacks:
    return DialBacks(probes, lambda _peer_id: announced, open_mesh=open_mesh)


async def test_the_asker_is_told_where_it_was_reached_and_where_it_comes_from():
    probes, link = Probes(), FakeLink()
    announced = [at("10.0.0.5"), at("192.168.1.9")]
    await helper(probes, announced).answer(link, DialBack(announced))
    assert link.sent == [DialedBack([announced[1], announced[0]], seen_as="192.168.1.9")]
    nobody, link = Probes(answers=False), FakeLink()
    await helper(nobody, announced).answer(link, DialBack(announced))
    assert link.sent == [DialedBack([], seen_as="192.168.1.9")]


@pytest.mark.parametrize(
    "address",
    [
        at("192.168.1.10"),
        at("192.168.1.9", peer_id=OTHER),
        at("127.0.0.1"),
        at("::1"),
        at("0.0.0.0"),
        at("224.0.0.1"),
        "/ip4/192.168.1.9/tcp/4001",
        f"/dns4/victim.example/tcp/4001/p2p/{ASKER}",
        f"/ip4/192.168.1.9/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{ASKER}",
        "nonsense",
        "",
    ],
)
async def test_nobody_else_is_dialled(address):
    probes, link = Probes(), FakeLink()
    await helper(probes).answer(link, DialBack([address]))
    assert probes.dialled == []
    assert link.sent == [DialedBack([], seen_as="192.168.1.9")]


async def test_an_open_mesh_dials_near_addresses_only_and_a_private_one_what_is_announced():
    public = at("8.8.8.8")
    for open_mesh, dialled in ((True, []), (False, [public])):
        probes = Probes()
        await helper(probes, [public], open_mesh=open_mesh).answer(FakeLink(), DialBack([public]))
        assert probes.dialled == dialled
    probes = Probes()
    await helper(probes, open_mesh=False).answer(FakeLink(), DialBack([public]))
    assert probes.dialled == [], "nobody announced it, and nobody comes from there"


async def test_loopback_is_for_peers_of_this_machine():
    probes = Probes()
    await helper(probes).answer(FakeLink(remote_address="/ip4/127.0.0.1/tcp/50000"), DialBack([at("127.0.0.1")]))
    assert probes.dialled == [at("127.0.0.1")]


async def test_few_addresses_of_one_question_are_tried_whatever_it_holds():
    probes, link = Probes(), FakeLink()
    await helper(probes).answer(link, DialBack([at("192.168.1.9", port) for port in range(1, 1000)]))
    assert len(probes.dialled) == MAX_ADDRESSES
    await helper(probes).answer(link, DialBack([at("192.168.1.9")] * 100))
    assert len(probes.dialled) == MAX_ADDRESSES + 1


async def test_a_peer_may_ask_a_few_times_and_then_seldom(autojump_clock):
    probes, link = Probes(), FakeLink()
    answering = helper(probes)
    question = DialBack([at("192.168.1.9")])
    for _ in range(BURST + 3):
        await answering.answer(link, question)
    assert [one.code for one in link.sent] == [""] * BURST + ["too_often"] * 3
    assert len(probes.dialled) == BURST
    other = FakeLink(peer_id=OTHER)
    await answering.answer(other, DialBack([]))
    assert other.sent[0].code == "", "one peer's questions are not another's"
    await trio.sleep(EVERY + 1)
    await answering.answer(link, question)
    await answering.answer(link, question)
    assert [one.code for one in link.sent[-2:]] == ["", "too_often"]


async def test_tries_of_all_peers_are_few_at_a_time_and_short(autojump_clock):
    probes = Probes(takes=60)
    answering = helper(probes)
    links = [FakeLink(peer_id=Identity.generate().peer_id) for _ in range(6)]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for link in links:
            addresses = [at("192.168.1.9", port, link.peer_id) for port in range(1, 5)]
            nursery.start_soon(answering.answer, link, DialBack(addresses))
    assert probes.most == MAX_TRIES
    assert trio.current_time() - began <= 24 / MAX_TRIES * TRY_LIMIT + 1
    assert all(link.sent == [DialedBack([], seen_as="192.168.1.9")] for link in links)


async def test_who_is_linked_over_a_relay_is_refused():
    probes, link = Probes(), FakeLink(via=OTHER)
    await helper(probes).answer(link, DialBack([at("192.168.1.9")]))
    assert (probes.dialled, link.sent[0].code) == ([], "relayed")


async def test_the_memory_of_askers_is_bounded(monkeypatch):
    monkeypatch.setattr(dial_back, "MAX_ASKERS", 3)
    answering = helper(Probes())
    for _ in range(10):
        await answering.answer(FakeLink(peer_id=Identity.generate().peer_id), DialBack([]))
    assert len(answering._credit) == 3
