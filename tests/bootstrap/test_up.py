"""`mesh up` with three programs that have the life of ours, and a gateway that answers."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bootstrap.up import curl_line, python_line

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys, threading, trio
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated
from mesh.config import CommonConfig, Option
from mesh.errors import Misconfigured
from mesh.runtime import launch

class Config(CommonConfig, frozen=True, kw_only=True):
    host: Annotated[str, Option(help="Host.")] = ""
    port: Annotated[int, Option(help="Port.")] = 0

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

async def serve(program, config):
    if ROLE in os.environ.get("FAIL_AT_START", ""):
        raise Misconfigured(f"the port {config.port} is taken; choose another --port")
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {name: getattr(config, name) for name in ("mdns", "mesh", "listen", "bootstrap", "drain_timeout", "host", "port")}
    print(json.dumps(settings), file=sys.stderr, flush=True)
    program.ready(addresses=[f"/ip4/127.0.0.1/tcp/1/p2p/{program.identity.peer_id}"], http=f"http://127.0.0.1:{server.server_port}")
    await program.stopping.wait()
    if ROLE in os.environ.get("HANG", ""):
        await trio.sleep_forever()

sys.exit(launch(ROLE, Config, serve, description="A test."))
"""
COMMAND = """
import sys
from bootstrap import command, up
up.MODULES = {role: f"fake_{role}" for role in up.MODULES}
sys.exit(command.main(["up", *sys.argv[1:]]))
"""
ROLES = ("bootstrap", "node", "gateway")


class Up:
    def __init__(self, folder, *argv, **environ):
        for role in ROLES:
            (folder / f"fake_{role}.py").write_text(f"ROLE = {role!r}\n{PROGRAM}")
        self.state = folder / "state"
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--state-dir", str(self.state), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environ},
            cwd=folder,
        )

    def children(self):
        """By role."""
        found = psutil.Process(self.process.pid).children()
        return {
            next(word for word in child.cmdline() if word.startswith("fake_")).removeprefix("fake_"): child for child in found
        }

    def ready(self):
        """What it printed up to its last line."""
        text = ""
        while "Ctrl-C stops it" not in text:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            text += line
        return text

    def end(self):
        out, err = self.process.communicate(timeout=50)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*argv, **environ):
        started.append(Up(tmp_path, *argv, **environ))
        return started[-1]

    yield start
    for up in started:
        up.process.kill()
        up.process.communicate()


def gone(children):
    _, alive = psutil.wait_procs(children.values(), timeout=20)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_it_starts_three_says_how_to_ask_and_stops_them(start):
    up = start("--port", "1234", "--drain-timeout", "7", INFERMESH_BOOTSTRAP="/elsewhere")
    text = up.ready()
    url = next(word for word in text.split() if word.startswith("http://"))
    assert curl_line(url) in text
    assert python_line(url) in text
    children = up.children()
    assert set(children) == set(ROLES)
    settings = {role: json.loads((up.state / role / "log").read_text().splitlines()[0]) for role in ROLES}
    assert len({given["mesh"] for given in settings.values()}) == 1
    assert settings["node"]["mesh"].startswith("up-")
    for role, given in settings.items():
        assert (given["mdns"], given["listen"], given["drain_timeout"]) == (False, ["/ip4/127.0.0.1/tcp/0"], 7)
        assert len(given["bootstrap"]) == (role != "bootstrap")
    assert (settings["node"]["host"], settings["node"]["port"], settings["gateway"]["port"]) == ("127.0.0.1", 0, 1234)
    up.process.terminate()
    code, _, err = up.end()
    assert code == 0
    assert "stopping" in err
    assert gone(children)


def test_a_second_signal_does_not_wait(start):
    up = start("--drain-timeout", "1000", HANG="node")
    up.ready()
    children = up.children()
    up.process.send_signal(signal.SIGINT)
    while "stopping" not in up.process.stderr.readline():
        pass
    up.process.send_signal(signal.SIGINT)
    assert up.end()[0] == 0
    assert gone(children)


@pytest.mark.parametrize("role", ROLES)
def test_one_that_cannot_start_is_named_with_its_message(start, role):
    up = start("--port", "1234", FAIL_AT_START=role)
    code, out, err = up.end()
    assert (code, out) == (2, "")
    assert f"mesh: the {role} ended (exit code 2)" in err
    assert f"    mesh-{role}: the port" in err


def test_one_that_dies_later_is_named_and_the_others_are_stopped(start):
    up = start()
    up.ready()
    children = up.children()
    children["node"].kill()
    code, _, err = up.end()
    assert code == 1
    assert "mesh: the node ended (SIGKILL)" in err
    assert gone(children)


def test_they_die_with_it_even_when_it_is_killed(start):
    up = start()
    up.ready()
    children = up.children()
    up.process.kill()
    up.process.wait()
    assert gone(children)


def test_a_signal_during_the_start(start):
    up = start()
    assert "starting the bootstrap peer" in up.process.stderr.readline()
    up.process.terminate()
    assert up.end()[:2] == (0, "")


def test_a_state_folder_that_cannot_be(start, tmp_path):
    (tmp_path / "state").write_text("")
    code, _, err = start().end()
    assert code == 2
    assert err.startswith("mesh: cannot use the folder")


def test_the_lines_to_paste_are_shell():
    words = shlex.split(curl_line("http://h:1"))
    assert words[:3] == ["curl", "-N", "http://h:1/v1/chat/completions"]
    assert json.loads(words[-1])["stream"] is True
    program, flag, code = shlex.split(python_line("http://h:1"))
    assert (program, flag) == ("python", "-c")
    compile(code, "line", "exec")
