from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from mesh.dialler import RETURN_WAIT, RETURNING, STEADY, Dialler, Target
from mesh.errors import Denied, Unavailable
from mesh.identity import Identity
from mesh.trail import Trail

PEER = Identity.generate().peer_id


class Network:
    """One peer that can be reached or not; every link to it lives until `cut`."""

    def __init__(self) -> None:
        self.up = False
        self.refuses = False
        self.tries: list[float] = []
        self.links = 0
        self.ended = trio.Event()

    async def connect(self, target: Target) -> None:
        self.tries.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise Denied("not you", code="peer_denied", status=403)
        if not self.up:
            raise Unavailable("no answer", code="unreachable")
        self.links += 1
        target.tried.set()
        await self.ended.wait()

    def cut(self) -> None:
        self.up = False
        self.ended.set()
        self.ended = trio.Event()

    def gaps(self, since: float) -> list[float]:
        tries = [at for at in self.tries if at >= since]
        return [later - earlier for earlier, later in pairwise(tries)]


@pytest.fixture
def world() -> Network:
    return Network()


@pytest.fixture
async def dialler(world: Network, nursery: trio.Nursery) -> Dialler:
    dialler = Dialler(world.connect, lambda _peer_id: None, Trail())
    dialler.hold(nursery, PEER, ["/ip4/10.0.0.1/tcp/1"])
    return dialler


async def test_who_was_never_there_is_tried_less_and_less(world: Network, dialler: Dialler, autojump_clock: Any) -> None:
    await trio.sleep(600)
    assert all(gap >= 15 for gap in world.gaps(300))


async def test_who_was_lost_is_tried_every_few_seconds_for_a_while(world: Network, dialler: Dialler, autojump_clock: Any) -> None:
    world.up = True
    await trio.sleep(STEADY + 5)
    assert world.links == 1
    world.cut()
    lost = trio.current_time()
    await trio.sleep(RETURNING)
    assert all(gap <= RETURN_WAIT for gap in world.gaps(lost))
    await trio.sleep(600)
    assert all(gap >= 15 for gap in world.gaps(lost + RETURNING + 120))
    world.up = True
    await trio.sleep(60)
    assert world.links == 2


async def test_a_link_that_never_held_counts_as_none(world: Network, dialler: Dialler, autojump_clock: Any) -> None:
    world.up = True
    await trio.sleep(3)
    world.cut()
    lost = trio.current_time()
    await trio.sleep(600)
    assert all(gap >= 15 for gap in world.gaps(lost + 120))


async def test_who_refuses_is_not_tried_often_after_a_loss(world: Network, dialler: Dialler, autojump_clock: Any) -> None:
    world.up = True
    await trio.sleep(STEADY + 5)
    world.refuses = True
    world.cut()
    lost = trio.current_time()
    await trio.sleep(RETURNING)
    assert all(gap >= 15 for gap in world.gaps(lost + 1))
