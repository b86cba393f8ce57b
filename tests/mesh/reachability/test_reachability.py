"""What a peer concludes from what its helpers say."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.identity import Identity
from mesh.messages.reachability import DialBack, DialedBack
from mesh.reachability.reachability import AGAIN, EVERY, FEATURE, HELPERS, WATCH, Reachability
from mesh.trail import Trail

OWN = Identity.generate().peer_id
LOCAL, PRIVATE = f"/ip4/127.0.0.1/tcp/4001/p2p/{OWN}", f"/ip4/192.168.1.9/tcp/4001/p2p/{OWN}"
PUBLIC = f"/ip4/8.8.8.8/tcp/4001/p2p/{OWN}"


@dataclass(eq=False)
class Helper:
    """A link to somebody who answers as the test says."""

    reaches: Any = ()
    role: str = "bootstrap"
    seen_as: str = "192.168.1.9"
    code: str = ""
    silent: bool = False
    dialled: bool = True
    via: str | None = None
    leaving: bool = False
    features: tuple[str, ...] = (FEATURE,)
    peer_id: str = field(default_factory=lambda: Identity.generate().peer_id)
    asked: list[list[str]] = field(default_factory=list)
    finding: Any = None

    @property
    def hello(self) -> Any:
        return SimpleNamespace(features=self.features)

    @property
    def record(self) -> Any:
        return SimpleNamespace(role=self.role)

    def send(self, message: DialBack) -> None:
        self.asked.append(message.addresses)
        if not self.silent:
            self.finding.hear(self, DialedBack(list(self.reaches), seen_as=self.seen_as, code=self.code))


class Scene:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.addresses = [LOCAL, PRIVATE]
        self.helpers: list[Helper] = []
        self.trail = Trail()
        self.changes: list[str] = []
        self.open_mesh = False

    async def find(self, *helpers: Helper) -> Reachability:
        finding = Reachability(
            lambda: list(self.addresses),
            lambda: list(self.helpers),
            self.trail,
            lambda: self.changes.append(finding.verdict),
            open_mesh=self.open_mesh,
        )
        self.nursery.start_soon(finding.run)
        self.helpers += helpers
        for helper in helpers:
            helper.finding = finding
        finding.look()
        await trio.sleep(1)
        return finding


@pytest.fixture
def scene(nursery):
    return Scene(nursery)


async def test_reached_means_reachable(scene, autojump_clock):
    helper = Helper([PRIVATE])
    finding = await scene.find(helper)
    assert (finding.verdict, finding.reached, finding.seen) == ("reachable", [PRIVATE], [])
    assert helper.asked == [[LOCAL, PRIVATE]]
    assert scene.changes == ["reachable"]
    assert scene.trail.outcome("reachability", helper.peer_id) == f"reached us at {PRIVATE}"


async def test_one_who_cannot_reach_us_stands_for_others_where_it_is(scene, autojump_clock):
    near, far = Helper([PRIVATE]), Helper(role="gateway")
    finding = await scene.find(near, far)
    assert (finding.verdict, finding.reached) == ("not reachable", [PRIVATE])
    assert "could not reach us" in scene.trail.outcome("reachability", far.peer_id)


@pytest.mark.parametrize(
    "helper",
    [Helper(silent=True), Helper([PRIVATE], code="too_often"), Helper(via="relay"), Helper(features=()), Helper(leaving=True)],
)
async def test_without_an_answer_nothing_is_known(scene, autojump_clock, helper):
    finding = await scene.find(helper)
    await trio.sleep(15)
    assert (finding.verdict, scene.changes) == ("unknown", [])


async def test_bootstrap_peers_are_asked_first_and_never_too_many(scene, autojump_clock):
    gateways = [Helper([PRIVATE], role="gateway") for _ in range(5)]
    bootstrap = Helper([PRIVATE])
    await scene.find(*gateways, bootstrap)
    assert bootstrap.asked
    assert sum(bool(one.asked) for one in gateways) == HELPERS - 1


async def test_a_helper_confirms_only_what_it_was_asked(scene, autojump_clock):
    finding = await scene.find(Helper([PUBLIC, PRIVATE]))
    assert finding.reached == [PRIVATE]


async def test_the_host_that_a_chosen_bootstrap_peer_sees_is_tried_too(scene, autojump_clock):
    helper = Helper([PUBLIC], seen_as="8.8.8.8")
    finding = await scene.find(helper)
    assert helper.asked == [[LOCAL, PRIVATE], [PUBLIC]]
    assert (finding.verdict, finding.reached, finding.seen) == ("reachable", [PUBLIC], [PUBLIC])


@pytest.mark.parametrize(
    "helper", [Helper([PUBLIC], seen_as="8.8.8.8", role="gateway"), Helper([PUBLIC], seen_as="8.8.8.8", dialled=False)]
)
async def test_nobody_else_may_name_a_host_for_us(scene, autojump_clock, helper):
    finding = await scene.find(helper)
    assert (finding.verdict, finding.seen) == ("not reachable", [])


@pytest.mark.parametrize("seen_as", ["", "nonsense", "fe80::1", "8.8.8.8"])
async def test_a_host_that_does_not_fit_is_not_tried(scene, autojump_clock, seen_as):
    scene.open_mesh = True
    helper = Helper(seen_as=seen_as)
    await scene.find(helper)
    assert helper.asked == [[LOCAL, PRIVATE]]


async def test_it_asks_anew_when_addresses_change_and_now_and_then(scene, autojump_clock):
    helper = Helper([PRIVATE])
    await scene.find(helper)
    await trio.sleep(AGAIN + WATCH)
    assert len(helper.asked) == 1
    scene.addresses.append(PUBLIC)
    await trio.sleep(AGAIN + WATCH + 1)
    assert helper.asked[1:] == [[LOCAL, PRIVATE, PUBLIC]]
    await trio.sleep(EVERY * 1.3 + AGAIN)
    assert len(helper.asked) == 3
    assert scene.changes == ["reachable"], "the same answer is no news"


async def test_new_peers_are_asked_while_the_answer_is_no_and_not_too_often(scene, autojump_clock):
    helper = Helper()
    finding = await scene.find(helper)
    helper.reaches = [PRIVATE]
    for _ in range(50):
        finding.look()
        await trio.sleep(AGAIN / 50 * 1.2)
    assert len(helper.asked) == 2
    assert (finding.verdict, scene.changes) == ("reachable", ["not reachable", "reachable"])


async def test_an_answer_that_nobody_asked_for_is_dropped(scene, autojump_clock):
    helper = Helper([PRIVATE])
    finding = await scene.find(helper)
    finding.hear(helper, DialedBack([PUBLIC]))
    await trio.sleep(1)
    assert finding.reached == [PRIVATE]
