"""A private mesh of real processes: the key, invites, a stranger, a rotation. Nothing secret in any log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
IMPORTABLE = {**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])}


def state_of(program: Any) -> Path:
    folder: Path = program.log.with_suffix("")
    return folder


def mesh(*argv: str) -> str:
    start = "import sys; from bootstrap.command import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", start, *argv], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


async def invite(program: Any, *more: str) -> str:
    return await trio.to_thread.run_sync(lambda: mesh("invite", "--state-dir", str(state_of(program)), *more))


async def refused(fleet: Any, role: str, *args: str) -> str:
    """The last line of a program that cannot get in. It says nothing on stdout."""
    program = fleet.spawn(role, "--port", "0", "--no-mdns", *args)
    assert await program.wait(60) == 2
    assert program.process.stdout.read() == ""
    line: str = program.log.read_text().strip().splitlines()[-1]
    return line


def keys_of(program: Any) -> list[dict[str, Any]]:
    path = state_of(program) / "network-key.json"
    keys: list[dict[str, Any]] = json.loads(path.read_text())["keys"]
    return keys


async def test_a_private_mesh_from_its_first_start_to_a_new_key(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--private", "--no-mdns")
    token = await invite(bootstrap)
    assert (state_of(bootstrap) / "network-key.json").stat().st_mode & 0o777 == 0o600
    node = await fleet.mock("model-a", "--no-mdns", "--bootstrap", token)
    gateway = await fleet.gateway("--no-mdns", "--bootstrap", token)

    async def answer() -> bool:
        return bool((await http.post(f"{gateway.url}/v1/chat/completions", json=chat("model-a"))).status_code == 200)

    await until(answer)
    example = [sys.executable, str(EXAMPLES / "client.py"), "--bootstrap"]
    for address, said in ((token, f"from {node.ready['peer_id']}"), (node.address, "client: that mesh is private")):
        done = await trio.run_process([*example, address], capture_stdout=True, capture_stderr=True, check=False, env=IMPORTABLE)
        assert said in (done.stdout + done.stderr).decode()

    line = await refused(fleet, "gateway", "--bootstrap", bootstrap.address)
    assert line.startswith("mesh-gateway: that mesh is private; join it with")
    line = await refused(fleet, "node", "--service-type", "mock", "--args", "m", "--bootstrap", node.address, "--private")
    assert line.startswith("mesh-node: ")
    assert "share no valid key" in line
    stale = await invite(bootstrap, "--expires", "1s")
    await trio.sleep(1.1)
    assert "the invite has expired" in await refused(fleet, "gateway", "--bootstrap", stale)
    assert "invite" in await refused(fleet, "gateway", "--bootstrap", token[:-8])

    # A new key, made by the node's operator, reaches everybody; nobody notices but the key files.
    before = keys_of(gateway)
    await trio.to_thread.run_sync(lambda: mesh("rotate-key", "--state-dir", str(state_of(node))))
    await until(lambda: len({keys_of(one)[0]["key_id"] for one in (bootstrap, node, gateway)} - {before[0]["key_id"]}) == 1)
    await until(lambda: len({keys_of(one)[0]["key_id"] for one in (bootstrap, node, gateway)}) == 1)
    assert await answer()

    # A member comes back by its key alone, by way of any other member.
    assert await gateway.stop() == 0
    gateway = await fleet.ready(
        fleet.spawn("gateway", "--port", "0", "--no-mdns", "--bootstrap", node.address, "--state-dir", str(state_of(gateway)))
    )
    await until(answer)

    logs = "".join(program.log.read_text() for program in fleet.programs)
    for secret in (token, stale, token[:-8], *(key["key"] for key in before + keys_of(node))):
        assert secret not in logs


async def test_mdns_alone_brings_members_together_and_no_stranger(fleet: Any, http: Any, until: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--private")
    token = await invite(bootstrap)
    node = await fleet.mock("model-a", "--bootstrap", token)
    member = await fleet.gateway("--bootstrap", token)
    stranger = await fleet.gateway()

    async def linked(gateway: Any) -> set[str]:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return {peer["peer_id"] for peer in peers if peer["linked"]}

    async def joined() -> bool:
        return node.ready["peer_id"] in await linked(member)

    await until(joined)
    await until(lambda: "that mesh is private" in stranger.log.read_text())
    assert (await http.get(f"{stranger.url}/v1/mesh/peers")).json()["peers"] == []
