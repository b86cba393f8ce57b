"""How programs start and end."""

from __future__ import annotations

import signal
from typing import Any

import httpx2
import pytest
import trio

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("role", ["bootstrap", "gateway", "node"])
async def test_idle_program_ends_with_zero_at_sigterm(fleet: Any, role: str) -> None:
    program = await (fleet.start("bootstrap") if role == "bootstrap" else getattr(fleet, role)())
    children = program.children()
    assert (role == "node") == bool(children)
    assert await program.stop() == 0
    assert not [child for child in children if child.is_running()]


async def test_ready_line(fleet: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    gateway = await fleet.gateway("--no-mdns")
    for program in (bootstrap, gateway):
        assert program.ready["event"] == "ready"
        assert program.ready["role"] == program.role
        assert program.ready["pid"] == program.process.pid
        assert program.address.startswith("/ip4/127.0.0.1/tcp/")
        assert program.address.endswith(f"/p2p/{program.ready['peer_id']}")
    assert bootstrap.ready["http"] is None
    assert gateway.url.startswith("http://127.0.0.1:")


async def test_worker_dies_with_its_node(fleet: Any, until: Any) -> None:
    node = await fleet.node("--no-mdns")
    worker = node.worker()
    node.kill()
    await until(lambda: not worker.is_running() or worker.status() == "zombie", limit=10)


async def test_second_signal_ends_at_once(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    node = await fleet.mock("model-a;first_token_ms=60000", "--no-mdns")
    info = (await http.get(f"{node.url}/info")).json()

    async def ask() -> None:
        with pytest.raises(httpx2.HTTPError):
            await http.post(f"{info['url']}/v1/chat/completions", json=chat("model-a"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.3)
        node.process.send_signal(signal.SIGTERM)
        await trio.sleep(0.5)
        assert node.process.poll() is None, "the first signal waits for the request"
        node.process.send_signal(signal.SIGTERM)
        await node.wait(10)


@pytest.mark.parametrize(
    ("role", "args", "says"),
    [
        ("node", ["--model", "mine=/nowhere"], "/nowhere"),
        ("node", ["--modle", "x=/y"], "--modle"),
        ("gateway", ["--bootstrap", "127.0.0.1:4001"], "127.0.0.1:4001"),
        ("gateway", ["--strategy", "fastest"], "predicted_latency"),
        ("gateway", ["--host", "0.0.0.0"], "--insecure"),
        ("bootstrap", ["--listen", "/ip4/127.0.0.1/tcp/99999"], "99999"),
    ],
)
async def test_a_start_that_cannot_succeed_exits_2_and_says_why(fleet: Any, role: str, args: list[str], says: str) -> None:
    port = [] if role == "bootstrap" else ["--port", "0"]
    program = fleet.spawn(role, "--no-mdns", *port, *args)
    assert await program.wait(30) == 2
    message = program.log.read_text().strip().splitlines()[-1]
    assert says in message


@pytest.mark.parametrize("kind", ["no tokenizer", "pickle"])
async def test_bad_model_directory(fleet: Any, tmp_path: Any, kind: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    if kind == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        (folder / "tokenizer.json").write_text("{}")
    else:
        (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    program = fleet.spawn("node", "--no-mdns", "--port", "0", "--model", f"mine={folder}")
    assert await program.wait(60) == 2
    message = program.log.read_text().strip().splitlines()[-1]
    assert ("safetensors" if kind == "pickle" else "tokenizer") in message


async def test_a_taken_port_is_named(fleet: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    port = gateway.url.rsplit(":", 1)[1]
    other = fleet.spawn("gateway", "--no-mdns", "--port", port)
    assert await other.wait(30) == 2
    assert port in other.log.read_text()
