"""The documented examples against real processes, and what a wrong bootstrap address looks like to an operator."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.identity import Identity

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


async def example(name: str, *args: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(EXAMPLES / name), *args]
    with trio.fail_after(60):
        return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=EXAMPLES.parents[1])


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parents[1]))


@pytest.mark.timeout(120)
async def test_the_client_example_asks_a_node_without_a_gateway(fleet: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    node = await fleet.mock("model-a", "--no-mdns", "--bootstrap", bootstrap.address)
    done = await example("client.py", "--bootstrap", bootstrap.address, "--mesh", fleet.mesh, "Hello")
    assert done.returncode == 0, done.stderr.decode()
    said = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines() if ": " in line)
    assert said["models"] == "model-a"
    assert said["tokens"].endswith(f" from {node.ready['peer_id']}")
    assert said["answer"].strip()
    assert said["stream"].strip()
    assert done.stderr == b""


@pytest.mark.timeout(120)
async def test_the_serving_example_is_found_through_a_gateway(
    fleet: Any, http: Any, until: Callable[..., Any], chat: Any
) -> None:
    gateway = await fleet.gateway("--no-mdns")
    command = [sys.executable, str(EXAMPLES / "serve.py"), "--bootstrap", gateway.address, "--mesh", fleet.mesh]
    program = fleet.spawn("node", command=command)

    async def served() -> bool:
        models = (await http.get(f"{gateway.url}/v1/models")).json()["data"]
        return "shout" in [model["id"] for model in models]

    await until(served)
    answer = await http.post(f"{gateway.url}/v1/chat/completions", json=chat("shout", "quiet please"))
    assert answer.json()["choices"][0]["message"]["content"] == "QUIET PLEASE "
    program.process.send_signal(2)
    assert await program.wait() == 0


@pytest.mark.timeout(120)
async def test_an_example_that_finds_nobody_says_why(fleet: Any) -> None:
    nobody = closed_address()
    done = await example("client.py", "--bootstrap", nobody, "--mesh", fleet.mesh)
    assert done.returncode == 1
    assert f"Bootstrap {nobody} could not be used" in done.stderr.decode()
    assert "Nothing listens there" in done.stderr.decode()


@pytest.mark.timeout(120)
async def test_a_wrong_bootstrap_address_has_its_reason_in_the_log_of_every_role(fleet: Any, until: Any) -> None:
    nobody = closed_address()
    alone = ("--no-mdns", "--bootstrap", nobody)
    programs = [
        fleet.spawn("bootstrap", *alone),
        fleet.spawn("node", *alone, "--port", "0", "--service-type", "mock", "--args", "m"),
        fleet.spawn("gateway", *alone, "--port", "0"),
    ]
    for program in programs:
        await fleet.ready(program)
        assert f"no link to {nobody} (bootstrap)" in program.log.read_text(), "the reason is there before the ready line"
    for program in programs:
        # Ten seconds in the program; the rest is for a machine that is busy with other tests.
        await until(lambda program=program: "Nothing listens there: start `mesh-bootstrap`" in program.log.read_text(), 25)
        log = program.log.read_text()
        assert "connection refused" in log
        assert "mDNS is off" in log


def closed_address() -> str:
    """Where nobody listens: a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
