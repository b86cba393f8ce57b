"""Backends that are not ours, behind a gateway: answers, `kill -9`, the end of the node."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trio

from node.models import demo_model_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).parents[1] / "node" / "backends" / "openai_program.py"
TRANSFORMERS = os.environ.get("INFERMESH_TEST_TRANSFORMERS", "")
"""A Python with transformers[serving] and accelerate."""
LLAMA = os.environ.get("INFERMESH_TEST_LLAMA", "")
"""A Python with llama-cpp-python[server] and gguf."""
VLLM = os.environ.get("INFERMESH_TEST_VLLM", "")
"""A Python with vLLM, for GPUs or for processors."""
TO_GGUF = Path(__file__).parents[1] / "bench" / "to_gguf.py"

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

    await until(another, 600)

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


CONTINUING = """
[backend]
type = "command"
command = {python!r}
args = [{program!r}, "{{port}}", "counts"]
continues = true
grace = 1
"""


async def test_an_answer_without_tokens_goes_on_at_another_node(
    fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(CONTINUING.format(python=sys.executable, program=str(PROGRAM)))
    gateway = await fleet.gateway("--no-mdns")
    nodes = [await fleet.node("--no-mdns", "--bootstrap", gateway.address, "--config-file", str(file)) for _ in range(2)]
    await until(lambda: serves(http, gateway.url, "far"))

    async def both() -> bool:
        status = (await http.get(f"{gateway.url}/v1/route", params={"model": "far"})).json()
        return len(status["candidates"]) == 2

    await until(both)
    by_id = {node.ready["peer_id"]: node for node in nodes}

    async def kill_server(peer_id: str) -> None:
        os.kill((await http.get(f"{by_id[peer_id].url}/info")).json()["pid"], signal.SIGKILL)

    async def kill_node(peer_id: str) -> None:
        by_id[peer_id].kill()

    for kill in (kill_server, kill_node):
        await until(both)
        chunks = await interrupted(http, gateway.url, chat("far"), kill)
        texts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        assert "".join(texts) == "".join(f"word-{number} " for number in range(30))
        ending, usage = chunks[-2], chunks[-1]["usage"]
        assert (ending["choices"][0]["finish_reason"], ending["resume"]) == ("stop", "approximate")
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 30)


async def interrupted(http: Any, url: str, body: dict[str, Any], kill: Callable[[str], Awaitable[None]]) -> list[dict[str, Any]]:
    """The chunks of a stream; `kill` is told of its node after some of them."""
    chunks: list[dict[str, Any]] = []
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            assert not line.startswith("id:")
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
                if len(chunks) == 6:
                    await kill(reply.headers["x-infermesh-node"])
    return chunks


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
        'env = { OMP_NUM_THREADS = "1" }\n'
    )
    shown = await Shown.start(fleet, http, until, chat, file)
    await shown.answers_piece_by_piece()
    await shown.is_told_when_a_client_has_left()
    await shown.refuses(chat("demo", min_p=0.1), "/v1/chat/completions", status=422, says="min_p")
    await shown.refuses({"model": "demo", "input": "a mesh"}, "/v1/embeddings", status=400, says="not for embedding")
    await shown.survives_and_ends()


@pytest.mark.skipif(not LLAMA, reason="INFERMESH_TEST_LLAMA names a Python with llama-cpp-python[server] and gguf")
async def test_llama_cpp(fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path) -> None:
    file, model = tmp_path / "node.toml", tmp_path / "demo.gguf"
    await trio.run_process([LLAMA, str(TO_GGUF), str(demo_model_path()), str(model), "mean"])
    file.write_text(
        f'[backend]\ntype = "command"\ncommand = "{LLAMA}"\nmodels = ["demo"]\ntasks = ["chat", "completion", "embedding"]\n'
        f'args = ["-m", "llama_cpp.server", "--model", "{model}", "--model_alias", "demo", "--port", "{{port}}",'
        ' "--host", "127.0.0.1", "--n_ctx", "2048", "--embedding", "true", "--verbose", "false",'
        ' "--interrupt_requests", "false"]\n'
    )
    shown = await Shown.start(fleet, http, until, chat, file)
    await shown.answers_piece_by_piece()
    await shown.is_told_when_a_client_has_left()
    await shown.embeds()
    # It begins to answer before it finds that it cannot, and then just stops.
    await shown.refuses(chat("demo", "word " * 3000), "/v1/chat/completions", status=502, says="ended its answer in the middle")
    await shown.survives_and_ends()


@pytest.mark.skipif(not VLLM, reason="INFERMESH_TEST_VLLM names a Python with vLLM")
@pytest.mark.timeout(1200)
async def test_vllm(fleet: Any, http: Any, until: Any, chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        f'[backend]\ntype = "vllm"\ncommand = "{VLLM} -m vllm.entrypoints.openai.api_server"\nmodel = "{demo_model_path()}"\n'
        'args = ["--served-model-name", "demo", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "4"]\n'
        'env = { OMP_NUM_THREADS = "1", VLLM_CPU_KVCACHE_SPACE = "1", HF_HUB_OFFLINE = "1", VLLM_NO_USAGE_STATS = "1" }\n'
    )
    shown = await Shown.start(fleet, http, until, chat, file)
    await shown.answers_piece_by_piece()
    await shown.goes_on_behind_a_text(fleet)
    await shown.refuses(
        chat("demo", "word " * 3000), "/v1/chat/completions", status=400, says="maximum context length is 2048 tokens"
    )
    await shown.survives_and_ends()


@dataclass(frozen=True)
class Shown:
    """A real server that has the demo model, as a backend of a node behind a gateway, and what is shown of it."""

    http: Any
    until: Any
    chat: Any
    gateway: Any
    node: Any

    @classmethod
    async def start(cls, fleet: Any, http: Any, until: Any, chat: Any, file: Path) -> Shown:
        """Run gateway and node."""
        gateway = await fleet.gateway("--no-mdns")
        flags = ["--no-mdns", "--bootstrap", gateway.address, "--config-file", str(file)]
        node = await fleet.ready(fleet.spawn("node", "--port", "0", *flags), limit=600)
        await until(lambda: serves(http, gateway.url, "demo"))
        return cls(http, until, chat, gateway, node)

    async def answers_piece_by_piece(self) -> None:
        """The same words in one piece and in a stream, whose pieces come one by one, and their count."""
        body = self.chat("demo", max_tokens=64)
        whole = await answer(self.http, self.gateway.url, body)
        assert whole.startswith("I am infermesh-demo")
        chunks = await self.streamed({**body, "stream_options": {"include_usage": True}})
        said = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
        pieces = [text for text in said if text]
        assert "".join(pieces) == whole
        assert len(pieces) > 10
        usage = chunks[-1]["usage"]
        assert usage["prompt_tokens"] > 2
        assert len(pieces) <= usage["completion_tokens"] <= 64
        completion = {"model": "demo", "prompt": "A mesh is", "max_tokens": 4, "temperature": 0}
        reply = await self.http.post(f"{self.gateway.url}/v1/completions", json=completion)
        assert reply.json()["choices"][0]["text"]

    async def goes_on_behind_a_text(self, fleet: Any) -> None:
        """Two more nodes ask it; what one of them began before it was killed, the other one goes on with, word for word."""
        flags = [
            "--service-type",
            "openai",
            "--backend-url",
            f"http://127.0.0.1:{self.port}",
            "--backend-models",
            "demo",
            "--backend-continues",
        ]
        gateway = await fleet.gateway("--no-mdns")
        nodes = [await fleet.node("--no-mdns", "--bootstrap", gateway.address, *flags) for _ in range(2)]
        by_id = {node.ready["peer_id"]: node for node in nodes}

        async def kill(peer_id: str) -> None:
            by_id[peer_id].kill()

        await self.until(lambda: serves(self.http, gateway.url, "demo"))
        body = self.chat("demo", max_tokens=200, logit_bias={"2": -100})
        whole = await answer(self.http, gateway.url, body)
        chunks = await interrupted(self.http, gateway.url, body, kill)
        assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == whole
        assert chunks[-2]["resume"] == "approximate"
        assert chunks[-1]["usage"]["completion_tokens"] == 200

    async def is_told_when_a_client_has_left(self) -> None:
        """It works on what nobody wants any more for a part of what all of it costs, and the connection is closed."""
        endless = self.chat("demo", max_tokens=400, logit_bias={"2": -100})
        before = self.spent
        await self.streamed(endless)
        whole, before = self.spent - before, self.spent
        during = await self.left_after(endless, 2)
        # It does one thing at a time: when it has answered this, it has ended that.
        await answer(self.http, self.gateway.url, self.chat("demo", max_tokens=1))
        assert self.spent - before < whole / 2
        await self.until(lambda: during - self.connections)

    async def refuses(self, body: dict[str, Any], path: str, *, status: int, says: str) -> None:
        """What it says of a request is what the client is told."""
        reply = await self.http.post(self.gateway.url + path, json=body)
        assert reply.status_code == status, reply.text
        assert says in reply.json()["error"]["message"]

    async def embeds(self) -> None:
        """Vectors in the order of the inputs."""
        body = {"model": "demo", "input": ["a mesh", "a node", "a mesh"]}
        reply = await self.http.post(f"{self.gateway.url}/v1/embeddings", json=body)
        assert reply.status_code == 200, reply.text
        first, second, third = (one["embedding"] for one in reply.json()["data"])
        assert len(first) == 160
        assert first == pytest.approx(third)
        assert first != pytest.approx(second)
        assert reply.json()["usage"]["prompt_tokens"] > 0

    async def survives_and_ends(self) -> None:
        """`kill -9`, and the end of the node."""
        process = await killed_and_back(self.http, self.until, self.node, self.gateway, self.chat("demo", max_tokens=8))
        family = [process, *process.children(recursive=True)]
        assert await self.node.stop() == 0
        assert not [one for one in family if one.is_running()]

    async def streamed(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream."""
        chunks: list[dict[str, Any]] = []
        await self.follow(body, chunks.append)
        return chunks

    async def left_after(self, body: dict[str, Any], pieces: int) -> set[Any]:
        """Begin to read a stream and leave; the node's connections to the server by then."""
        seen: list[str] = []
        during: set[Any] = set()

        def take(chunk: dict[str, Any]) -> None:
            seen.extend(text for text in [chunk["choices"][0]["delta"].get("content")] if text)
            if len(seen) >= pieces and not scope.cancel_called:
                during.update(self.connections)
                scope.cancel()

        with trio.CancelScope() as scope:
            await self.follow(body, take)
        assert scope.cancelled_caught
        return during

    async def follow(self, body: dict[str, Any], take: Callable[[dict[str, Any]], None]) -> None:
        asked = self.http.stream("POST", f"{self.gateway.url}/v1/chat/completions", json={**body, "stream": True})
        async with asked as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    take(json.loads(line.removeprefix("data: ")))

    @property
    def port(self) -> int:
        """P, where the server listens; the node has P+1."""
        return int(self.node.url.rpartition(":")[2]) - 1

    @property
    def server(self) -> psutil.Process:
        """The process that listens there."""
        return next(child for child in self.node.children() if self.port in _listening(child))

    @property
    def spent(self) -> float:
        """Seconds that the server has computed."""
        times = self.server.cpu_times()
        return float(times.user + times.system)

    @property
    def connections(self) -> set[Any]:
        """The node's to it."""
        mine = psutil.Process(self.node.process.pid).net_connections("tcp")
        return {one.laddr for one in mine if one.raddr and one.raddr.port == self.port}


def _listening(process: psutil.Process) -> list[int]:
    return [one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
