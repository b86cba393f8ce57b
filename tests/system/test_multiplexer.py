"""Models that share an accelerator, with real programs: a gateway reaches models that sleep, and hooks wake servers."""

import json
import sys

import httpx2
import pytest
import trio

from node.http import free_pair
from node.models import demo_model_path
from tests.fleet import until

pytestmark = pytest.mark.system

SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = "from " + asked["model"]
        said = {"index": 0, "text": text, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"choices": [said], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
open(sys.argv[2], "w").write(str(os.getpid()))
server.serve_forever()
"""


async def _asks(http, url, model):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    reply = await http.post(f"{url}/v1/chat/completions", json=body, timeout=50)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


async def _both(http, url):
    return {entry["id"] for entry in (await http.get(f"{url}/v1/models")).json()["data"]} >= {"a", "b"}


async def test_a_gateway_reaches_models_that_sleep_and_an_operator_moves_them(fleet) -> None:
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.mock("a,b;wake_seconds=0.3", "--switch-policy", "cost_aware", "--no-mdns", "--bootstrap", gateway.address)
    async with httpx2.AsyncClient(trust_env=False) as http:
        await until(lambda: _both(http, gateway.url))
        assert await _asks(http, gateway.url, "a")
        assert await _asks(http, gateway.url, "b")
        status = (await http.get(f"{node.url}/control/status")).json()
        assert status["active_model"] == "b"
        assert (await http.get(f"{node.url}/health")).json()["status"] == "healthy"
        await http.post(f"{node.url}/models/load", json={"model": "a"})
        page = (await http.get(f"{node.url}/metrics")).text
        assert 'infermesh_switch_total{from="b",to="a",result="done"} 1' in page
        assert await _asks(http, gateway.url, "a")
        loaded = (await http.post(f"{gateway.url}/models/load", json={"model": "b", "stream": True})).text
        assert '"state":"working"' in loaded
        assert '"state":"ready"' in loaded
        assert (await http.get(f"{node.url}/control/status")).json()["active_model"] == "b"
        unloaded = (await http.post(f"{gateway.url}/models/unload", json={"model": "b"})).json()
        assert (unloaded["state"], len(unloaded["nodes"])) == ("asleep", 1)
        assert (await http.get(f"{node.url}/control/status")).json()["state"] == "idle"
        missing = await http.post(f"{gateway.url}/models/load", json={"model": "c"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        elsewhere = await http.post(f"{gateway.url}/models/load", json={"model": "b", "node": "nobody"})
        assert elsewhere.json()["error"]["code"] == "node_not_found"
        assert (await http.post(f"{gateway.url}/models/load", json={})).status_code == 400


async def test_hooks_wake_real_servers_from_an_old_file(fleet, tmp_path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    first = free_pair("127.0.0.1")
    ports = {"a": first, "b": first + 1}
    models = "".join(
        f"  {model}:\n"
        f"    port: {port}\n"
        f"    wake: |\n"
        f"      test -e {tmp_path}/$LLMUX_MODEL.pid && exit 0\n"
        f"      {sys.executable} {script} {port} {tmp_path}/$LLMUX_MODEL.pid &\n"
        f"      while ! test -s {tmp_path}/$LLMUX_MODEL.pid; do sleep 0.05; done\n"
        f"    sleep: |\n"
        f"      test -e {tmp_path}/$LLMUX_MODEL.pid || exit 0\n"
        f"      kill $(cat {tmp_path}/$LLMUX_MODEL.pid); rm {tmp_path}/$LLMUX_MODEL.pid\n"
        f"    alive: kill -0 $(cat {tmp_path}/$LLMUX_MODEL.pid)\n"
        for model, port in ports.items()
    )
    config = tmp_path / "mux.yaml"
    config.write_text(f"models:\n{models}policy:\n  request_timeout_secs: 60\n")
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.node("--config-file", str(config), "--no-mdns", "--bootstrap", gateway.address)
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            await until(lambda: _both(http, gateway.url))
            assert await _asks(http, gateway.url, "a") == "from a"
            assert await _asks(http, gateway.url, "b") == "from b"
            assert not (tmp_path / "a.pid").exists()
        finally:
            for model in ports:
                await http.post(f"{node.url}/models/unload", json={"model": model}, timeout=20)
    assert not (tmp_path / "b.pid").exists()


COUNTING = """
import asyncio, json, os, sys
asked = []
async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().lower()
            length = int(head.split("content-length:")[1].split()[0]) if "content-length:" in head else 0
            body = await reader.readexactly(length)
            if head.startswith("get /asked"):
                answer = asked
            else:
                asked.append(json.loads(body).get("prompt"))
                said = {"index": 0, "text": "word", "finish_reason": "stop"}
                answer = {"choices": [said], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
            body = json.dumps(answer).encode()
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\n")
            writer.write(b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    open(sys.argv[2], "w").write(str(os.getpid()))
    await server.serve_forever()
asyncio.run(main())
"""


def _hooked(folder, model: str, port: int, *, before: str = "") -> str:
    """A `[[backend]]` of the node's own file whose hooks start and end the counting server."""
    (folder / "server.py").write_text(COUNTING)
    pid = folder / f"{model}.pid"
    return f"""
[[backend]]
type = "hooks"
models = ["{model}"]
url = "http://127.0.0.1:{port}"
wake = '''
echo woken >> {folder}/{model}.log
test -s {pid} && exit 0
{before}
{sys.executable} {folder}/server.py {port} {pid} &
while ! test -s {pid}; do sleep 0.05; done
'''
sleep = "test -s {pid} || exit 0; kill $(cat {pid}); rm {pid}; echo slept >> {folder}/{model}.log"
alive = "test -s {pid} && kill -0 $(cat {pid})"
alive_timeout_secs = 30
"""


async def _status(http, node):
    return (await http.get(f"{node.url}/control/status", timeout=30)).json()


async def test_a_thousand_wait_for_one_wake_and_nothing_is_done_for_those_who_left(fleet, tmp_path) -> None:
    port = free_pair("127.0.0.1")
    config = tmp_path / "node.toml"
    config.write_text(_hooked(tmp_path, "m", port, before=f"while ! test -e {tmp_path}/go; do sleep 0.05; done"))
    node = await fleet.node("--config-file", str(config), "--no-mdns")
    outlet = int(node.url.rpartition(":")[2]) - 1
    answered = []

    async def ask(number: int, scope: trio.CancelScope) -> None:
        body = json.dumps({"model": "m", "prompt": f"n{number}", "max_tokens": 1}).encode()
        with scope:
            stream = await trio.open_tcp_stream("127.0.0.1", outlet)
            async with stream:
                head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                await stream.send_all(f"{head}content-type: application/json\r\n\r\n".encode() + body)
                if (await stream.receive_some(4096)).startswith(b"HTTP/1.1 200"):
                    answered.append(number)

    async def waiting(http, count: int) -> bool:
        return (await _status(http, node))["models"]["m"]["queue_depth"] == count

    scopes = [trio.CancelScope() for _ in range(1000)]
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            async with trio.open_nursery() as nursery:
                for number, scope in enumerate(scopes):
                    nursery.start_soon(ask, number, scope)
                await until(lambda: waiting(http, 1000), limit=50)
                for scope in scopes[100:1000:3]:
                    scope.cancel()
                await until(lambda: waiting(http, 700), limit=50)
                (tmp_path / "go").touch()
            asked = (await http.get(f"http://127.0.0.1:{port}/asked", timeout=30)).json()
            page = (await http.get(f"{node.url}/metrics", timeout=30)).text
        finally:
            await http.post(f"{node.url}/models/unload", json={"model": "m"}, timeout=30)
    stayed = {number for number in range(1000) if number < 100 or (number - 100) % 3}
    assert set(answered) == stayed
    assert len(answered) == 700
    assert sorted(asked) == sorted(["Hello", *(f"n{number}" for number in stayed)])  # and the token that proved the wake
    assert (tmp_path / "m.log").read_text().split() == ["woken", "slept"]
    assert 'infermesh_request_queue_wait_seconds_count{model="m"} 700' in page


async def test_a_node_takes_over_what_the_last_one_left_awake(fleet, tmp_path) -> None:
    first = free_pair("127.0.0.1")
    config = tmp_path / "node.toml"
    config.write_text(_hooked(tmp_path, "a", first) + _hooked(tmp_path, "b", first + 1))
    node = await fleet.node("--config-file", str(config), "--no-mdns")
    async with httpx2.AsyncClient(trust_env=False) as http:
        await http.post(f"{node.url}/models/load", json={"model": "b"}, timeout=30)
        node.kill()
        pid = (tmp_path / "b.pid").read_text()
        node = await fleet.node("--config-file", str(config), "--no-mdns")

        async def taken_over() -> bool:
            return (await _status(http, node))["awake"] == ["b"]

        try:
            await until(taken_over)
            assert (tmp_path / "b.pid").read_text() == pid
            assert not (tmp_path / "a.log").exists()
        finally:
            await http.post(f"{node.url}/models/unload", json={"model": "b"}, timeout=30)
    assert (tmp_path / "b.log").read_text().split() == ["woken", "woken", "slept"]


async def test_a_model_that_slept_lightly_says_the_same_from_the_same_process(fleet, tmp_path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f"""
cache_mib = 64
[multiplexer]
[[backend]]
path = "{demo_model_path()}"
models = ["demo"]
sleep_level = 1
[[backend]]
type = "mock"
models = ["other"]
""")
    node = await fleet.node("--config-file", str(config), "--no-mdns")
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:

        async def said() -> str:
            port = int(node.url.rpartition(":")[2]) - 1
            body = {"model": "demo", "prompt": "The capital of France", "max_tokens": 12, "temperature": 0}
            reply = await http.post(f"http://127.0.0.1:{port}/v1/completions", json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["text"]

        before, worker = await said(), node.worker().pid
        await http.post(f"{node.url}/models/load", json={"model": "other"})
        status = await _status(http, node)
        assert (status["awake"], status["models"]["demo"]["state"]) == (["other"], "asleep")
        assert status["models"]["demo"]["memory"] > 0
        assert "MiB of keys and values given back" in status["models"]["demo"]["note"]
        assert await said() == before
        assert node.worker().pid == worker
        assert (await _status(http, node))["awake"] == ["demo"]
