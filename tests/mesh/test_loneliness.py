"""What a peer says that finds nobody."""

from __future__ import annotations

import logging
from typing import Any

import trio

from mesh.identity import Identity
from tests.mesh.town import Heard, served, town, until


async def test_a_lonely_peer_says_why_after_ten_seconds(autojump_clock, caplog):
    async with town() as here:
        identity = Identity.generate()
        gateway = await here.add("gateway", f"/memory/77/p2p/{identity.peer_id}")
        caplog.clear()
        await trio.sleep(11)
        assert any("/memory/77" in line and "Nothing listens there: start `mesh-bootstrap`" in line for line in caplog.messages)
        assert any("mDNS is off" in line for line in caplog.messages)
        assert gateway.trail.explain() != []


async def test_each_cause_of_loneliness_has_a_sentence_of_its_own(autojump_clock, caplog):
    """Multicast blocked, a wrong bootstrap address, another mesh, nobody there: what the log says after ten seconds."""

    def way(interfaces: list[str], heard_itself: bool, *heard: Heard) -> dict[str, Any]:
        class Way:
            def __init__(self, _peer):
                self.interfaces, self.heard_itself = interfaces, heard_itself

            async def run(self, found, *, task_status):
                task_status.started()
                for one in heard:
                    found(one)
                await trio.sleep_forever()

        return {"mdns": Way}

    stranger = Identity.generate().peer_id
    said = {}
    for cause, discovery, bootstrap in (
        ("blocked", way(["eth0 10.0.0.1"], False), []),
        ("alone", way(["eth0 10.0.0.1"], True), []),
        ("other mesh", way(["eth0 10.0.0.1"], True, Heard(stranger, ["/memory/9/p2p/" + stranger], mesh="elsewhere")), []),
        ("wrong address", way(["eth0 10.0.0.1"], True), [f"/memory/77/p2p/{stranger}"]),
    ):
        async with town() as here:
            caplog.clear()
            await here.add("node", *bootstrap, discovery=discovery)
            await trio.sleep(11)
            said[cause] = " ".join(record.message for record in caplog.records if record.name == "mesh.peer")
    assert "nobody, not even itself, on eth0 10.0.0.1: multicast is blocked on this machine" in said["blocked"]
    assert "has heard of nobody yet, on eth0 10.0.0.1. Either no other peer runs here" in said["alone"]
    assert f"{stranger} was heard, but it is in mesh 'elsewhere', not 'test'" in said["other mesh"]
    assert f"Bootstrap /memory/77/p2p/{stranger} could not be used" in said["wrong address"]
    assert "multicast is blocked" not in said["alone"] + said["other mesh"] + said["wrong address"]
    assert "could not be used" not in said["blocked"] + said["alone"] + said["other mesh"]


async def test_who_asks_says_when_peers_are_there_and_no_node(autojump_clock, caplog):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        gateway = await here.add("gateway", bootstrap)
        await trio.sleep(11)
        (said,) = [
            line for line in caplog.messages if line.startswith("Linked with 1 other peer of the mesh, but no node was heard")
        ]
        assert f"Start one: `mesh-node --mesh test --bootstrap {gateway.addresses[0]}`" in said
        await here.add("node", bootstrap)
        await until(lambda: served(gateway))
        assert gateway.explain() == []


async def test_a_bootstrap_peer_that_nobody_finds_says_how_others_come(autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        await trio.sleep(11)
        assert any(f"--bootstrap {bootstrap.addresses[0]}" in line for line in caplog.messages)
