"""The mesh outlives its bootstrap peers: what they knew is in the distributed hash table, and on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def seeds_of(program: Any) -> set[str]:
    """The peers that a program would come back through."""
    path = program.log.with_suffix("") / "seeds.json"
    return set(json.loads(path.read_bytes())["peers"]) if path.exists() else set()


async def models_at(http: httpx2.AsyncClient, url: str) -> set[str]:
    return {model["id"] for model in (await http.get(f"{url}/v1/models")).json()["data"]}


async def test_the_mesh_outlives_its_bootstrap_peer(fleet: Any, http: Any, until: Callable[..., Any], chat: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    names = ("model-a", "model-b", "model-c")
    nodes = [await fleet.mock(name, "--no-mdns", "--bootstrap", bootstrap.address) for name in names]
    everybody = {node.ready["peer_id"] for node in nodes} | {bootstrap.ready["peer_id"]}
    for node in nodes:
        await until(lambda node=node: seeds_of(node) == everybody - {node.ready["peer_id"]}, limit=60)
    bootstrap.kill()
    # It knows one node, which told no other node's record to anybody.
    gateway = await fleet.gateway("--no-mdns", "--bootstrap", nodes[0].address)

    async def all_models() -> bool:
        return await models_at(http, gateway.url) == set(names)

    await until(all_models, limit=60)
    answer = await http.post(f"{gateway.url}/v1/chat/completions", json=chat("model-c"))
    assert answer.status_code == 200, answer.text

    # Back on another port, told nothing, it finds the mesh by itself; so it is a way in again.
    folder = str(bootstrap.log.with_suffix(""))
    again = await fleet.start("bootstrap", "--no-mdns", "--state-dir", folder)
    assert again.ready["peer_id"] == bootstrap.ready["peer_id"]
    second = await fleet.gateway("--no-mdns", "--bootstrap", again.address)

    async def all_models_there() -> bool:
        return await models_at(http, second.url) == set(names)

    await until(all_models_there, limit=60)
