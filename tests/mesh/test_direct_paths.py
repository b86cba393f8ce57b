"""Looking for a direct path: when, where, how often."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from mesh import direct_paths
from mesh.direct_paths import FIRST, FIRST_DIALLED, LONGEST, STEADY, DirectPaths
from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.trail import Trail

PEER = Identity.generate().peer_id
RELAY = Identity.generate().peer_id
NEAR = f"/ip4/10.0.0.1/tcp/1/p2p/{PEER}"
FAR = f"/ip4/8.8.8.8/tcp/1/p2p/{PEER}"
CIRCUIT = f"/ip4/10.0.0.2/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"


@dataclass(eq=False)
class FakeLink:
    peer_id: Any = PEER
    via: str | None = RELAY
    dialled: bool = False
    leaving: bool = False
    carrier: str = "relay"


@dataclass
class Scene:
    links: dict[str, Any] = field(default_factory=dict)
    announced: list[str] = field(default_factory=lambda: [NEAR, FAR, CIRCUIT, "nonsense"])
    dials: list[tuple[float, list[str]]] = field(default_factory=list)
    opens: bool = False
    lives: float = 1.0
    trail: Trail = field(default_factory=Trail)

    def paths(self, *, open_mesh: bool = True) -> DirectPaths:
        return DirectPaths(self.links.get, self._dial, lambda _peer_id: self.announced, self.trail, open_mesh=open_mesh)

    async def _dial(self, peer_id: Any, addresses: Any, up: Any) -> None:
        self.dials.append((trio.current_time(), list(addresses)))
        await trio.lowlevel.checkpoint()
        if not self.opens:
            raise Unavailable("nobody answers")
        relayed, self.links[peer_id] = self.links[peer_id], FakeLink(via=None, carrier="libp2p")
        up(self.links[peer_id])
        await trio.sleep(self.lives)
        self.links[peer_id] = FakeLink()
        assert relayed.via

    @property
    def pauses(self) -> list[float]:
        times = [at for at, _ in self.dials]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.fixture
def scene():
    return Scene()


@pytest.mark.parametrize(("dialled", "first"), [(False, FIRST_DIALLED), (True, FIRST)])
async def test_who_was_dialled_tries_first_and_both_back_off(scene, autojump_clock, nursery, dialled, first):
    began = trio.current_time()
    scene.links[PEER] = link = FakeLink(dialled=dialled)
    nursery.start_soon(scene.paths().seek, link)
    await trio.sleep(4 * 3600)
    assert first / 2 <= scene.dials[0][0] - began <= first
    assert all(one == [NEAR] for _, one in scene.dials), "neither relays nor what an open mesh does not take"
    assert all(pause <= LONGEST for pause in scene.pauses)
    assert min(scene.pauses[-10:]) >= LONGEST / 2
    assert "stays on its relay" in scene.trail.outcome("direct path", PEER)


async def test_a_private_mesh_tries_public_addresses(scene, autojump_clock, nursery):
    scene.links[PEER] = link = FakeLink()
    nursery.start_soon(scene.paths(open_mesh=False).seek, link)
    await trio.sleep(1)
    assert scene.dials[0][1] == sorted([NEAR, FAR])


async def test_news_start_the_tries_anew_and_no_news_do_not(scene, autojump_clock, nursery):
    scene.links[PEER] = link = FakeLink()
    paths = scene.paths()
    nursery.start_soon(paths.seek, link)
    await trio.sleep(4 * 3600)
    tried = len(scene.dials)
    paths.news(PEER)
    await trio.sleep(1)
    assert len(scene.dials) == tried, "it says what it said before"
    scene.announced.append(NEAR.replace("10.0.0.1", "10.0.0.7"))
    paths.news(PEER)
    await trio.sleep(1)
    assert len(scene.dials) > tried
    tried = len(scene.dials)
    await trio.sleep(3600)
    paths.news()
    await trio.sleep(1)
    assert len(scene.dials) > tried


async def test_it_ends_with_the_link_at_once(scene, autojump_clock):
    scene.links[PEER] = link = FakeLink()
    paths = scene.paths()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(paths.seek, link)
        await trio.sleep(3600)
        ended = trio.current_time()
        del scene.links[PEER]
        paths.gone(link)
    assert trio.current_time() == ended


async def test_a_direct_link_that_dies_young_is_not_sought_in_a_circle(scene, autojump_clock):
    scene.opens = True
    paths = scene.paths()
    for lives, calm in ((1.0, False), (STEADY + 1, True)):
        scene.lives = lives
        scene.dials.clear()
        for _ in range(14):
            scene.links.setdefault(PEER, FakeLink())
            await paths.seek(scene.links[PEER])
        waits = [pause - lives for pause in scene.pauses]
        assert (waits[-1] <= FIRST_DIALLED) is calm
    assert scene.trail.outcome("direct path", PEER) == "found over libp2p"


async def test_the_memory_of_tries_is_bounded(scene, autojump_clock, monkeypatch):
    monkeypatch.setattr(direct_paths, "MAX_PEERS", 2)
    paths = scene.paths()
    for _ in range(5):
        peer_id = Identity.generate().peer_id
        await paths.seek(FakeLink(peer_id=peer_id))
    assert len(paths._tries) == 2
