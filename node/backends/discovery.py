"""Servers of others on this machine, found at their usual ports: only when the operator asked for it.

1. Only loopback is looked at, and only `PORTS`; each look takes at most `LOOK_SECONDS`, all at once.
2. What is ours is never found: our own servers say so in their lists, and the ports of this node are left out.
3. What is found becomes a remote backend like one that was configured; `found` looks again and again.
4. Command-line tools and providers with keys are never found, only configured.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import MeshError
from mesh.openai.remote.client import RemoteClient
from node.backends.served import MAX_LISTED
from node.backends.settings import BackendSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PORTS: Mapping[int, str] = {
    11434: "ollama",
    1234: "lm-studio",
    8000: "vllm",
    8080: "llama-cpp",
    3000: "tgi",
    30000: "sglang",
}
"""Who usually is where."""
LOOK_SECONDS = 2.0
OURS = "infermesh"

logger = logging.getLogger(__name__)


class _Listed(msgspec.Struct):
    id: str
    owned_by: str | None = None


class _List(msgspec.Struct):
    data: list[_Listed]


async def discover(own_ports: Collection[int], ports: Mapping[int, str] = PORTS) -> dict[int, BackendSettings]:
    """Settings of what answers, by port. Takes LOOK_SECONDS at most."""
    found: dict[int, BackendSettings] = {}
    client = RemoteClient()
    try:
        with trio.move_on_after(LOOK_SECONDS):
            async with trio.open_nursery() as nursery:
                for port in set(ports) - set(own_ports):
                    nursery.start_soon(_look, client, port, ports[port], found)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await client.aclose()
    return found


async def _look(client: RemoteClient, port: int, name: str, found: dict[int, BackendSettings]) -> None:
    url = f"http://127.0.0.1:{port}"
    try:
        listed = msgspec.json.decode(await client.fetch(f"{url}/v1/models"), type=_List).data
    except (MeshError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    models = sorted(model.id for model in listed if 0 < len(model.id) <= 200 and model.id.isprintable())
    if not models or any(model.owned_by == OURS for model in listed):
        return
    if len(models) > MAX_LISTED:
        logger.debug("%s has %d models; the first %d are announced: configure it to choose", url, len(models), MAX_LISTED)
    found[port] = BackendSettings(type="openai", id=f"{name}-{port}", url=url, models=models[:MAX_LISTED])
