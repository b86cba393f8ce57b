"""Links of real programs move to a direct connection, and no request notices."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import trio

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

REQUESTS = 200
AT_ONCE = 8


def seen_by(url: str) -> dict[str, str]:
    """What carries the link to each peer, by role, as `mesh peers` says."""
    command = [sys.executable, "-c", "from bootstrap.command import main; main()", "peers", "--json", "--gateway", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {peer["role"]: peer["carrier"] for peer in json.loads(done.stdout)["peers"]}


async def test_requests_go_on_while_the_link_moves(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    texts: list[str] = []

    async def look() -> dict[str, str]:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return {peer["role"]: peer["carrier"] for peer in peers if peer["linked"]}

    async def client() -> None:
        while len(texts) < REQUESTS or await look() != {"node": "direct"}:
            answer = await http.post(f"{gateway.url}/v1/chat/completions", json=chat("m", max_tokens=8, seed=7))
            assert answer.status_code == 200, answer.text
            texts.append(answer.json()["choices"][0]["message"]["content"])

    node = await fleet.mock("m", "--no-mdns", "--bootstrap", gateway.address)
    await until(look, every=0.005)
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(client)
    assert len(texts) >= REQUESTS
    assert len(set(texts)) == 1, "the mock's answers are a pure function of the request"
    assert await trio.to_thread.run_sync(seen_by, gateway.url) == {"node": "direct"}
    assert await node.stop() == 0
    await until(lambda: not_linked(http, gateway.url))


async def not_linked(http: Any, url: str) -> bool:
    peers = (await http.get(f"{url}/v1/mesh/peers")).json()["peers"]
    return not any(peer["linked"] for peer in peers)


async def test_no_direct(fleet: Any, http: Any, until: Any) -> None:
    gateway = await fleet.gateway("--no-mdns", "--no-direct")
    await fleet.mock("m", "--no-mdns", "--bootstrap", gateway.address)

    async def linked() -> bool:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return any(peer["linked"] for peer in peers)

    await until(linked)
    await trio.sleep(1)
    assert await trio.to_thread.run_sync(seen_by, gateway.url) == {"node": "libp2p"}
