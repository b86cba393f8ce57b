"""`mesh up` as a newcomer uses it: what it prints is pasted into a shell, and the other verbs look at what it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

COMMAND = [sys.executable, "-c", "import sys; from bootstrap.command import main; sys.exit(main())"]


class Up:
    def __init__(self, state: Path) -> None:
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERMESH_")}
        self.errors = (state.parent / "up.log").open("w+")
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--port", "0", "--state-dir", str(state)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=self.environ,
        )
        self.said = self._read()
        self.url = next(word for word in self.said.split() if word.startswith("http://127.0.0.1:"))

    def _read(self) -> str:
        assert self.process.stdout is not None
        said = ""
        while "Ctrl-C stops it" not in said:
            line = self.process.stdout.readline()
            if not line:
                self.errors.seek(0)
                pytest.fail(f"it ended early:\n{self.errors.read()}")
            said += line
        return said

    def line(self, start: str) -> str:
        return next(line.strip() for line in self.said.splitlines() if line.strip().startswith(start))

    def mesh(self, *argv: str, given: str = "") -> str:
        """What a verb prints; it must succeed."""
        done = subprocess.run(
            [*COMMAND, *argv, "--gateway", self.url],
            input=given,
            capture_output=True,
            text=True,
            env=self.environ,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up") / "state")
    yield up
    up.process.kill()
    up.process.communicate()
    up.errors.close()


def test_the_curl_line_streams_an_answer(up: Up) -> None:
    done = subprocess.run(["sh", "-c", up.line("curl ")], capture_output=True, text=True, timeout=60, check=True)
    chunks = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    assert len(chunks) > 3
    deltas = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "model" in "".join(deltas)


def test_the_python_line_answers(up: Up) -> None:
    line = up.line("python -c").replace("python", sys.executable, 1)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False, env=up.environ)
    assert done.returncode == 0, done.stderr
    assert "model" in done.stdout


def test_reports(up: Up) -> None:
    assert "nodes: 1 linked of 1 known" in up.mesh("status")
    assert up.mesh("models").splitlines()[1].startswith("infermesh-demo\t1\t1\t")
    peers = json.loads(up.mesh("peers", "--json"))["peers"]
    assert sorted(peer["role"] for peer in peers) == ["bootstrap", "node"]
    assert "by predicted_latency" in up.mesh("route", "infermesh-demo")


def test_chat(up: Up) -> None:
    assert "model" in up.mesh("chat", "Who are you?")
    assert up.mesh("chat", "--model", "infermesh-demo", given="Who are you?").strip()


def test_doctor_sees_the_gateway(up: Up) -> None:
    checks = {check["check"]: check for check in json.loads(up.mesh("doctor", "--json"))["checks"]}
    assert checks["gateway"]["result"] == "ok"


def test_ctrl_c_ends_all_and_leaves_nothing(up: Up) -> None:
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 4  # three programs and a worker
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
