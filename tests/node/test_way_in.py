import logging
from functools import partial

import pytest
import trio

from mesh.http import Response, Router, serve
from node.way_in import PATH, keep_asking


class PeerDouble:
    """The part of a peer that is told whom to dial."""

    mesh = "home"

    def __init__(self) -> None:
        self.links: dict[str, object] = {}
        self.met: list[tuple[str, list[str], str]] = []
        self.told = trio.Event()

    def meet(self, peer_id: str, addresses: list[str], *, way: str) -> None:
        self.met.append((peer_id, addresses, way))
        self.links[peer_id] = object()
        self.told.set()


@pytest.fixture
def gateway(nursery):
    async def start(*answers) -> str:
        left = list(answers)

        async def way_in(_request):
            return left.pop(0) if len(left) > 1 else left[0]

        router = Router()
        router.add("GET", PATH, way_in)
        port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
        return f"http://127.0.0.1:{port}/"

    return start


async def test_it_asks_until_it_is_told_whom_to_dial(gateway, nursery, caplog):
    way = {"peer_id": "p", "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/p"] * 100, "mesh": "home"}
    url = await gateway(Response(503, b"{}"), Response(200, b"<html>"), Response.json({**way, "mesh": "far"}), Response.json(way))
    peer = PeerDouble()
    with caplog.at_level(logging.WARNING):
        nursery.start_soon(keep_asking, peer, url, 0.01)
        with trio.fail_after(20):
            await peer.told.wait()
    ((peer_id, addresses, told_by),) = peer.met
    assert (peer_id, len(addresses), told_by) == ("p", 32, "the registry URL")
    for part in ("is not available", "this is no gateway of a mesh", "its mesh is 'far'"):
        assert part in caplog.text


async def test_a_gateway_that_is_not_there_is_a_warning(nursery, caplog):
    with caplog.at_level(logging.WARNING):
        nursery.start_soon(keep_asking, PeerDouble(), "http://127.0.0.1:1", 0.01)
        with trio.fail_after(20):
            while "cannot be reached" not in caplog.text:  # noqa: ASYNC110 - the log has no event
                await trio.sleep(0.01)
    assert caplog.text.count("cannot be reached") == 1
