"""Starts that cannot succeed: exit code 2, one line that names the wrong part, and nothing of the operator's is replaced."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.identity import Identity
from mesh.invite import PREFIX, issue
from mesh.keyring import Keyring

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

PEER = Identity.from_seed(b"s" * 32).peer_id
GOOD = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"


def invite(*addresses: str) -> str:
    keyring = Keyring(None, "ours")
    return issue(keyring.rotate(), "ours", addresses or [GOOD], time.time() + 60)


def resealed(change: Any) -> str:
    """An invite with a changed body: its MAC is wrong, which only a member can tell."""
    body = invite().removeprefix(PREFIX)
    sealed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    return PREFIX + base64.urlsafe_b64encode(change(sealed)).decode().rstrip("=")


WRONG = {
    "/ip4/127.0.0.1/tcp/4001": "must end in /p2p/PEER-ID",
    f"/ip4/300.0.0.1/tcp/4001/p2p/{PEER}": "/ip4/300.0.0.1 is not a host",
    f"/ip6/127.0.0.1/tcp/4001/p2p/{PEER}": "/ip6/127.0.0.1 is not a host",
    f"/ip4/127.0.0.1/udp/4001/p2p/{PEER}": "is not a TCP multiaddr",
    f"/ip4/127.0.0.1/tcp/70000/p2p/{PEER}": "the port '70000' is not a number from 1 to 65535",
    f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}x": "which is not a peer id",
    "127.0.0.1:4001": "does not say which peer it is",
    invite()[:-40]: "the content of the invite is broken; copy it whole",
    invite()[:60]: "the invite was cut or is too long; copy it whole",
    invite() + "*": "holds a character that is none of its own",
    invite("/ip4/127.0.0.1/tcp/99999/p2p/" + PEER): "the port '99999'",
    invite("/ip4/127.0.0.1/tcp/1"): "address 1 of the invite is wrong",
    resealed(lambda sealed: sealed[:40] + b"\xc1" + sealed[41:]): "the content of the invite is broken",
}


async def test_what_is_wrong_with_an_address_or_an_invite_is_named(fleet: Any) -> None:
    async def check(wrong: str, said: str) -> None:
        program = fleet.spawn("bootstrap", "--no-mdns", "--bootstrap", wrong)
        assert await program.wait(60) == 2
        (line,) = program.log.read_text().strip().splitlines()
        assert line.startswith("mesh-bootstrap: "), line
        assert said in line
        assert not wrong.startswith(PREFIX) or wrong[30:50] not in line, "an invite is a secret"

    limit = trio.CapacityLimiter(4)

    async def limited(wrong: str, said: str) -> None:
        async with limit:
            await check(wrong, said)

    async with trio.open_nursery() as nursery:
        for wrong, said in WRONG.items():
            nursery.start_soon(limited, wrong, said)


def empty(_path: Path) -> bytes:
    return b""


def cut(path: Path) -> bytes:
    return path.read_bytes()[:-50]


def mangled(path: Path) -> bytes:
    return path.read_bytes().replace(b"A", b"%").replace(b"0", b"\x00")


@pytest.mark.parametrize("name", ["identity.pem", "network-key.json"])
async def test_a_corrupt_key_file_ends_the_start_and_is_never_replaced(fleet: Any, name: str) -> None:
    state = fleet.logs / "state"
    options = ("--no-mdns", "--private", "--state-dir", str(state))
    first = await fleet.start("bootstrap", *options)
    assert await first.stop() == 0
    good = (state / name).read_bytes()
    for corrupt in (empty, cut, mangled):
        (state / name).write_bytes(good)
        bad = corrupt(state / name)
        (state / name).write_bytes(bad)
        program = fleet.spawn("bootstrap", *options)
        assert await program.wait() == 2
        (line,) = program.log.read_text().strip().splitlines()
        assert f"{name} " in line
        assert "move it away" in line
        assert (state / name).read_bytes() == bad
        assert program.process.stdout.read() == ""
    (state / name).write_bytes(good)
    again = await fleet.start("bootstrap", *options)
    assert again.ready["peer_id"] == first.ready["peer_id"]
    assert json.loads((state / "network-key.json").read_text())["mesh"] == fleet.mesh
