"""Orders to load and unload models: obeyed for gateways alone, bounded, with progress, and never waited for without a word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.errors import Busy, Denied, TimedOut, Unavailable
from mesh.managing import FEATURE, MAX_ORDERS, Managing
from mesh.messages.manage import Manage, Managed


class Wire:
    """One end of a link: what it sends, the other end hears."""

    def __init__(self, role: str = "gateway", *features: str) -> None:
        self.hello = SimpleNamespace(features=features)
        self.record = SimpleNamespace(role=role, name="other")
        self.closed = trio.Event()
        self.deliver: Any = lambda message: None

    def send(self, message: Any) -> None:
        self.deliver(message)


@pytest.fixture
def pair(nursery):
    """A gateway that asks and a node that obeys, and the gateway's end of their link."""

    def make(manage, role: str = "gateway"):
        asking, obeying = Managing(), Managing()
        obeying.manage = manage
        near, far = Wire("node", FEATURE), Wire(role)
        near.deliver = lambda message: obeying.hear(far, message, nursery)
        far.deliver = lambda message: asking.hear(near, message, nursery)
        return asking, near

    return make


async def test_an_order_is_carried_out_and_its_progress_told(autojump_clock, pair):
    seen, told = [], []

    async def manage(model, awake):
        seen.append((model, awake))
        await trio.sleep(30.5)

    asking, link = pair(manage)
    assert await asking.ask(link, "m", awake=True, progress=told.append) == pytest.approx(30.5)
    assert seen == [("m", True)]
    assert told[:3] == pytest.approx([0, 1, 2])


async def test_what_goes_wrong_over_there_is_raised_here(autojump_clock, pair):
    async def manage(model, awake):
        raise Unavailable("no room", code="wake_failed")

    asking, link = pair(manage)
    with pytest.raises(Unavailable, match="no room") as failed:
        await asking.ask(link, "m", awake=True)
    assert (failed.value.code, failed.value.status) == ("wake_failed", 503)


async def test_only_gateways_are_obeyed(autojump_clock, pair):
    async def manage(model, awake):
        raise AssertionError

    asking, link = pair(manage, role="client")
    with pytest.raises(Denied, match="only a gateway"):
        await asking.ask(link, "m", awake=False)


async def test_orders_of_one_link_are_bounded(autojump_clock, pair, nursery):
    async def manage(model, awake):
        await trio.sleep_forever()

    asking, link = pair(manage)
    for _ in range(MAX_ORDERS):
        nursery.start_soon(lambda: asking.ask(link, "m", awake=True))
    await trio.sleep(0.1)
    with pytest.raises(Busy):
        await asking.ask(link, "m", awake=True)


async def test_silence_the_end_of_the_link_and_a_peer_that_cannot_are_errors(autojump_clock):
    asking, link = Managing(), Wire("node", FEATURE)
    with pytest.raises(TimedOut):
        await asking.ask(link, "m", awake=True)
    link.closed.set()
    with pytest.raises(Unavailable) as lost:
        await asking.ask(link, "m", awake=True)
    assert lost.value.code == "link_lost"
    with pytest.raises(Unavailable) as unable:
        await asking.ask(Wire("node"), "m", awake=True)
    assert unable.value.code == "not_supported"


async def test_an_answer_of_nobody_and_an_order_to_nobody_change_nothing(autojump_clock, nursery):
    sent, link = [], Wire()
    link.deliver = sent.append
    idle = Managing()
    assert idle.features == []
    idle.hear(link, Managed(5, "done"), nursery)
    idle.hear(link, Manage(1, "m", True), nursery)
    assert [message.state for message in sent] == ["failed"]
