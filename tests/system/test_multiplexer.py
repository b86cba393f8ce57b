"""Models that share an accelerator, with real programs: a gateway reaches models that sleep, and hooks wake servers."""

import sys

import httpx2
import pytest

from node.http import free_pair
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
