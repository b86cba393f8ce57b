import json
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

pytestmark = pytest.mark.system

DRIVER = """
import sys
from gateway.cli import main
try:
    main()
finally:
    heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "tokenizers", "safetensors"})
    print("loaded", heavy, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    started: list[subprocess.Popen] = []

    def begin(*argv: str, code: str | None = None) -> subprocess.Popen:
        command = ["-c", code] if code else ["-m", "gateway"]
        flags = ["--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--state-dir", str(tmp_path / str(len(started)))]
        process = subprocess.Popen(
            [sys.executable, *command, *flags, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def test_a_gateway_starts_serves_and_stops_without_torch(start):
    process = start("--port", "0", code=DRIVER)
    line = ready(process)
    assert (line["event"], line["role"], line["pid"]) == ("ready", "gateway", process.pid)
    assert all(address.endswith(f"/p2p/{line['peer_id']}") for address in line["addresses"])
    assert httpx2.get(f"{line['http']}/health").json()["mode"] == "api_server"
    assert httpx2.get(f"{line['http']}/ready").status_code == 503
    assert httpx2.get(f"{line['http']}/services").json()["total"] == 0
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out.strip()) == (0, "loaded []")


@pytest.mark.parametrize(
    ("argv", "says"),
    [(("--host", "0.0.0.0"), "--insecure"), (("--strategy", "fastest"), "round_robin"), (("--prot", "1"), "--port")],
)
def test_a_start_that_cannot_succeed_says_what_to_do(start, argv, says):
    process = start("--port", "0", *argv)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert says in err.strip().splitlines()[-1]


def test_a_port_that_is_taken_is_named(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start("--port", port)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert port in err
