"""Backends that are not ours, behind a gateway: answers, `kill -9`, the end of the node."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.models import demo_model_path

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).parents[1] / "node" / "backends" / "openai_program.py"
TRANSFORMERS = os.environ.get("INFERMESH_TEST_TRANSFORMERS", "")
"""A Python with transformers[serving] and accelerate."""
LLAMA = os.environ.get("INFERMESH_TEST_LLAMA", "")
"""A llama.cpp server's command, with {port}, and how it calls its model: `COMMAND => MODEL`."""

SEVERAL = """
[[backend]]
type = "command"
command = {python!r}
args = [{program!r}, "{{port}}"]
env = {{ SAYS = "a program" }}
grace = 1

[[backend]]
type = "cli"
models = ["shout"]
command = {python!r}
args = ["-c", "import sys; print(sys.stdin.read().upper())"]

[[backend]]
type = "mock"
models = ["words"]
"""


async def answer(http: Any, url: str, body: dict[str, Any]) -> str:
    reply = await http.post(f"{url}/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


async def serves(http: Any, url: str, *models: str) -> bool:
    listed = (await http.get(f"{url}/v1/models")).json()["data"]
    return {model["id"] for model in listed} >= set(models)


async def killed_and_back(http: Any, until: Any, node: Any, gateway: Any, body: dict[str, Any]) -> psutil.Process:
    """Kill the backend's process, wait until another one answers through the gateway, and return that."""
    first = (await http.get(f"{node.url}/info")).json()["pid"]
    os.kill(first, signal.SIGKILL)

    async def another() -> bool:
        info = (await http.get(f"{node.url}/info")).json()
        return bool(info["state"] == "ready" and info["pid"] not in (None, first))

    await until(another, 120)

    async def answers() -> bool:
        return bool((await http.post(f"{gateway.url}/v1/chat/completions", json=body)).status_code == 200)

    await until(answers, 60)
    return psutil.Process((await http.get(f"{node.url}/info")).json()["pid"])


async def test_several_backends_of_one_file(fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(SEVERAL.format(python=sys.executable, program=str(PROGRAM)))
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.node("--no-mdns", "--bootstrap", gateway.address, "--config-file", str(file))
    await until(lambda: serves(http, gateway.url, "far", "shout", "words"))
    assert await answer(http, gateway.url, chat("far")) == "a program far"
    assert await answer(http, gateway.url, chat("shout", "hello")) == "HELLO\n"
    assert await answer(http, gateway.url, chat("words"))
    info = (await http.get(f"{node.url}/info")).json()
    assert (info["service_type"], [model["id"] for model in info["models"]]) == ("command", ["far"])
    assert await serves(http, info["url"], "far")
    services = (await http.get(f"{gateway.url}/services")).json()["services"]
    shown = {one["name"]: one["metadata"].get("models") for one in services if one["metadata"]["type"] == "openai-api"}
    assert {name.split("-", 2)[2]: models for name, models in shown.items()} == {
        "command-server": ["far"],
        "cli-server": ["shout"],
        "mock-server": ["words"],
    }
    assert {one["url"] for one in services} > {info["url"], node.url}
    process = await killed_and_back(http, until, node, gateway, chat("far"))
    assert await node.stop() == 0
    assert not process.is_running()


async def test_a_gateway_with_keys_and_a_node_that_finds_it_by_its_url(
    fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[key]]\nname = "alice"\nhash = "{hashlib.sha256(b"sesame").hexdigest()}"\n')
    plain = await fleet.gateway("--no-mdns")
    keyed = await fleet.gateway("--no-mdns", "--bootstrap", plain.address, "--api-keys", str(keys))
    await fleet.mock("words", "--no-mdns", "--registry-url", plain.url)
    await until(lambda: serves(http, plain.url, "words"))
    refused = await http.post(f"{keyed.url}/v1/chat/completions", json=chat("words"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
    assert (await http.get(f"{keyed.url}/health")).status_code == 200
    headers = {"authorization": "Bearer sesame"}

    async def answered() -> bool:
        reply = await http.post(f"{keyed.url}/v1/chat/completions", json=chat("words"), headers=headers)
        return bool(reply.status_code == 200)

    await until(answered)
    denied = await http.post(f"{keyed.url}/services", json={}, headers=headers)
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "missing_scope")


async def test_backends_that_cannot_be_are_refused_at_the_start(fleet: Any) -> None:
    flags = ["--service-type", "mock", "--args", "a", "--listen", "/ip4/127.0.0.1/tcp/8101", "--port", "8100"]
    program = fleet.spawn("node", "--no-mdns", *flags)
    assert await program.wait(60) == 2
    assert "8101 is P+1 of" in program.log.read_text()


@pytest.mark.skipif(not TRANSFORMERS, reason="INFERMESH_TEST_TRANSFORMERS names a Python with transformers[serving]")
async def test_transformers_serve(fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    script = "from transformers.cli.transformers import main; main()"
    file.write_text(
        f'[backend]\ntype = "command"\ncommand = "{TRANSFORMERS}"\nmodels = ["demo"]\nupstream_model = "{demo_model_path()}"\n'
        f'args = ["-c", "{script}", "serve", "--port", "{{port}}", "--host", "127.0.0.1", "--device", "cpu"]\n'
    )
    await through_a_gateway(fleet, http, until, chat("demo", max_tokens=8), "--config-file", str(file))


@pytest.mark.skipif(not LLAMA, reason="INFERMESH_TEST_LLAMA names a llama.cpp server")
async def test_llama_cpp(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    command, _, model = LLAMA.partition(" => ")
    flags = ["--service-type", "command", "--command", command, "--backend-models", "llama", "--backend-upstream-model", model]
    await through_a_gateway(fleet, http, until, chat("llama", max_tokens=8), *flags)


async def through_a_gateway(fleet: Any, http: Any, until: Any, body: dict[str, Any], *flags: str) -> None:
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.ready(fleet.spawn("node", "--port", "0", "--no-mdns", "--bootstrap", gateway.address, *flags), limit=240)
    await until(lambda: serves(http, gateway.url, body["model"]))
    assert await answer(http, gateway.url, body)
    process = await killed_and_back(http, until, node, gateway, body)
    assert await node.stop() == 0
    assert not process.is_running()
