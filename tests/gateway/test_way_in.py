"""What a gateway tells newcomers, and whom it tells about a private mesh."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.way_in import WayIn
from mesh.access import Access
from mesh.errors import Denied, Unavailable
from mesh.http import Request, Router
from mesh.identity import Identity
from mesh.keyring import Keyring

ID = Identity.from_seed(b"w" * 32).peer_id
HERE, LAN, SIX = f"/ip4/127.0.0.1/tcp/1/p2p/{ID}", f"/ip4/10.0.0.7/tcp/1/p2p/{ID}", f"/ip6/::1/tcp/1/p2p/{ID}"


def keyed() -> Keyring:
    keyring = Keyring(None, "ours")
    keyring.rotate()
    return keyring


async def ask(*, client: str = "127.0.0.1", keyring: Keyring | None = None, joined: bool = True, **headers: str) -> Any:
    peer: Any = SimpleNamespace(
        peer_id=ID,
        mesh="ours",
        addresses=[HERE, SIX, LAN] if joined else [],
        settings=SimpleNamespace(access=Access(keyring=keyring)),
    )
    router = Router()
    WayIn(peer).mount(router)
    request = Request(method="GET", path="/v1/mesh/bootstrap", query={}, headers=headers, body=b"", params={}, client=client)
    return msgspec.json.decode((await router.answer(request)).body)


async def test_a_newcomer_on_this_machine_is_told_every_address():
    assert await ask() == {"peer_id": ID, "addresses": [HERE, SIX, LAN], "mesh": "ours", "private": False}


@pytest.mark.parametrize("client", ["10.0.0.9", "2001:db8::1"])
async def test_a_newcomer_elsewhere_is_told_only_what_it_can_dial(client):
    assert (await ask(client=client))["addresses"] == [LAN]


@pytest.mark.parametrize(
    ("client", "headers"),
    [("10.0.0.9", {}), ("127.0.0.1", {"x-forwarded-for": "10.0.0.9"}), ("127.0.0.1", {"origin": "https://elsewhere.example"})],
)
async def test_a_private_mesh_is_told_about_on_its_own_machine_alone_and_never_the_key(client, headers):
    keyring = keyed()
    said = await ask(keyring=keyring)
    assert (said["private"], set(said)) == (True, {"peer_id", "addresses", "mesh", "private"})
    with pytest.raises(Denied) as refused:
        await ask(client=client, keyring=keyring, **headers)
    assert refused.value.status == 403


async def test_before_it_joined_it_says_when_to_ask_again():
    with pytest.raises(Unavailable, match="still joining") as joining:
        await ask(joined=False)
    assert joining.value.retry_after == 1
