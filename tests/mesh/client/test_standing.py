"""Clients of private meshes: by an invite, by a kept key, or not at all."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
import trio

from bootstrap.network_key import invite
from mesh.access import Access
from mesh.client import LibP2PInferenceNode, MeshClient
from mesh.client.standing import check_addresses, open_standing
from mesh.errors import Denied, Misconfigured
from mesh.identity import Identity
from mesh.invite import issue
from mesh.keyring import FILE, Keyring

HELLO = [{"role": "user", "content": "Hello"}]
PEER = Identity.from_seed(b"p" * 32).peer_id
ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}"


def ring(mesh="test"):
    keyring = Keyring(None, mesh)
    keyring.rotate()
    return keyring


def token(keyring, addresses=(ADDRESS,), expires=3600.0):
    return issue(keyring.current, keyring.mesh, list(addresses), time.time() + expires)


async def pieces(client):
    async with client.stream("m", HELLO) as stream:
        return [piece async for piece in stream]


async def served(client, model):
    with trio.fail_after(30):
        while model not in {name for node in client.nodes() for name in node.models}:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.05)


async def test_a_client_joins_a_private_mesh_with_an_invite_and_streams(village, autojump_clock):
    keyring = ring()
    async with village(access=Access(mesh="test", keyring=keyring)) as here:
        await here.node()
        invited = token(keyring, here.bootstrap.addresses)
        async with here.client(bootstrap=[invited], mesh="default") as client:
            await served(client, "m")
            assert await pieces(client) == ["hello ", "world"]
            assert client.peer.settings.access.keyring.current == keyring.current
        with pytest.raises(Denied, match="that mesh is private"):
            async with here.client():
                pass


async def test_a_key_that_was_kept_lets_the_client_in_again(village, autojump_clock, tmp_path):
    keyring = ring()
    async with village(access=Access(mesh="test", keyring=keyring)) as here:
        await here.node()
        options = {"mesh": "default", "state_dir": tmp_path / "state"}
        async with here.client(bootstrap=[token(keyring, here.bootstrap.addresses)], **options) as client:
            await served(client, "m")
            first = client.peer.peer_id
        assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600
        async with here.client(private=True, **options) as client:
            await served(client, "m")
            assert client.peer.peer_id == first
            assert await pieces(client) == ["hello ", "world"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [("expired", "has expired"), ("other key", "this mesh does not have, or no longer"), ("other mesh", "says 'theirs'")],
)
async def test_a_bad_invite_says_why_in_no_exception_group(village, autojump_clock, changed, said):
    keyring = ring()
    async with village(access=Access(mesh="test", keyring=keyring)) as here:
        addresses = here.bootstrap.addresses
        tokens = {
            "expired": token(keyring, addresses, expires=-1),
            "other key": token(ring(), addresses),
            "other mesh": token(ring("theirs"), addresses),
        }
        with pytest.raises((Denied, Misconfigured), match=said):
            async with here.client(bootstrap=[tokens[changed]], mesh="test"):
                pass


async def test_a_node_of_a_program_founds_a_private_mesh_that_others_are_invited_to(village, autojump_clock, tmp_path):
    async def echo(request):
        yield request.messages[-1]["content"]

    async with village() as here:
        options = {"enable_mdns": False, "private": True, "state_dir": tmp_path}
        node = LibP2PInferenceNode(options, transport=here.transport)
        node.register_model("echo", echo)
        await node.start()
        with pytest.raises(Misconfigured, match="in use"):
            await LibP2PInferenceNode(options, transport=here.transport).start()
        asking = LibP2PInferenceNode({"enable_mdns": False, "bootstrap_peers": [invite(tmp_path, 60)]}, transport=here.transport)
        await asking.start()
        assert (await asking.submit_inference_request("chat", "echo", "hello you")).text == "hello you"
        await asking.stop()
        stranger = LibP2PInferenceNode({"enable_mdns": False, "bootstrap_peers": node.addresses}, transport=here.transport)
        with pytest.raises(Denied, match="that mesh is private"):
            await stranger.start()
        await stranger.stop()
        await node.stop()
        with pytest.raises(Misconfigured, match="no peer runs on"):
            invite(tmp_path, 60)


def test_a_key_is_made_only_where_it_can_be_kept_and_others_can_join(tmp_path):
    def opened(state_dir, *, founds):
        with ExitStack() as resources:
            fields = {"bootstrap": [], "mesh": "default", "private": True}
            return open_standing(resources, state_dir=state_dir, founds=founds, **fields)

    with pytest.raises(Misconfigured, match="needs a state_dir"):
        opened(None, founds=True)
    for state_dir in (None, tmp_path):
        with pytest.raises(Misconfigured, match="private needs an invite"):
            opened(state_dir, founds=False)
    assert not (tmp_path / FILE).exists()
    made = opened(tmp_path, founds=True).access.keyring.current
    assert opened(str(tmp_path), founds=False).access.keyring.current == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"/ip4/300.0.0.1/tcp/4001/p2p/{PEER}", "/ip4/300.0.0.1 is not a host"),
        ("/ip4/127.0.0.1/tcp/4001", "must end in /p2p/PEER-ID"),
        (f"/ip4/127.0.0.1/tcp/70000/p2p/{PEER}", "the port '70000'"),
        ("/ip4/127.0.0.1/tcp/1/p2p/nobody", "'nobody', which is not a peer id"),
        ("infermesh-invite-!", "copy it whole"),
    ],
)
async def test_what_is_no_address_is_named_before_anything_starts(text, said):
    with pytest.raises(Misconfigured, match=said):
        check_addresses([ADDRESS, text])
    with pytest.raises(Misconfigured, match=said):
        async with MeshClient(bootstrap=[text], mdns=False):
            pass
    with pytest.raises(Misconfigured, match=said):
        await LibP2PInferenceNode({"bootstrap_peers": [text], "enable_mdns": False}).start()
