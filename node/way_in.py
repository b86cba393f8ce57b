"""`registry_url`: into the mesh by way of a gateway, as older nodes registered with their registry.

1. While nobody is linked, the gateway is asked how to get to it, again every `heartbeat_interval`: it may come later than we.
2. What it says only tells whom to dial. That it cannot be reached is a warning, never the end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import MeshError
from mesh.identity import PeerId
from mesh.openai.remote.client import RemoteClient

if TYPE_CHECKING:
    from mesh.peer import Peer

PATH = "/v1/mesh/bootstrap"
ASK_SECONDS = 10.0
MAX_ADDRESSES = 32

logger = logging.getLogger(__name__)


class _Way(msgspec.Struct):
    peer_id: str
    addresses: list[str]
    mesh: str = "default"


async def keep_asking(peer: Peer, url: str, interval: float) -> None:
    """Ask the gateway at `url` whenever nobody is linked, until cancelled."""
    client, said = RemoteClient(), ""
    try:
        while True:
            if not peer.links:
                problem = await _ask(peer, client, url.rstrip("/") + PATH)
                if problem and problem != said:
                    logger.warning("--registry-url %s: %s; asking again every %g s", url, problem, interval)
                said = problem
            await trio.sleep(interval)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await client.aclose()


async def _ask(peer: Peer, client: RemoteClient, url: str) -> str:
    """What is wrong; "" when the peer was told whom to dial."""
    try:
        with trio.fail_after(ASK_SECONDS):
            way = msgspec.json.decode(await client.fetch(url), type=_Way)
    except MeshError as error:
        return error.message
    except trio.TooSlowError:
        return f"no answer within {ASK_SECONDS:g} s"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "this is no gateway of a mesh"
    if way.mesh != peer.mesh:
        return f"its mesh is {way.mesh[:64]!r}; start with --mesh of the same name, or ask another gateway"
    peer.meet(PeerId(way.peer_id), way.addresses[:MAX_ADDRESSES], way="the registry URL")
    return ""
