"""A gateway as its HTTP clients see it: a real server in a thread, with answers that a test sets."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from bootstrap.command import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeGateway(ThreadingHTTPServer):
    """`answers`: path to (status, body). A chat request takes the next of `chats`: a list of stream lines, or (status, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, tuple[int, Any]] = {}
        self.chats: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.hold = threading.Event()
        """A stream waits for it at the line `HOLD`."""

    def say(self, *texts: str, end: str | None = "[DONE]") -> None:
        """The next answer, in pieces."""
        chunks = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
        self.chats.append([*chunks, *([end] if end else [])])


class Handler(BaseHTTPRequestHandler):
    server: FakeGateway

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(
            *self.server.answers.get(self.path, (404, {"error": {"message": f"no route {self.path}", "code": "not_found"}}))
        )

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        chat = self.server.chats.pop(0)
        if isinstance(chat, tuple):
            self._answer(*chat)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        with suppress(OSError):
            for line in chat:
                if line == "HOLD":
                    self.server.hold.wait(30)
                else:
                    self.wfile.write(f": a comment\n\ndata: {line}\n\n".encode())

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with FakeGateway() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


def peer(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "peer_id": f"12D3{name}",
        "name": name,
        "role": "node",
        "version": "0.1.0",
        "addresses": [],
        "linked": True,
        "rtt_ms": 0.4567,
        "models": [{"id": "m", "state": "ready", "running": 2, "waiting": 1, "slots": 8}],
        "hardware": {"device": "cpu", "device_name": "A Processor", "memory_bytes": 8 * 2**30},
        **fields,
    }


@pytest.fixture
def small_mesh(fake: FakeGateway) -> FakeGateway:
    """A gateway with two nodes, one of them linked, and a bootstrap peer."""
    away = peer("away", linked=False, rtt_ms=None)
    way_in = peer("way-in", role="bootstrap", models=[], hardware=None)
    fake.answers = {
        "/health": (200, {"status": "healthy", "version": "0.1.0"}),
        "/v1/mesh/peers": (200, {"peers": [peer("near"), away, way_in]}),
        "/v1/models": (200, {"object": "list", "data": [{"id": "m"}, {"id": "n"}]}),
        "/v1/route?model=m": (
            200,
            {
                "model": "m",
                "strategy": "predicted_latency",
                "candidates": [{"rank": 1, "name": "near", "state": "ready", "score": 0.12345, "parts": {"rtt": 0.0004567}}],
                "not_considered": [{"name": "away", "state": "ready", "reason": "there is no link to it"}],
            },
        ),
    }
    return fake


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the machine's own settings say."""
    for name in [name for name in os.environ if name.startswith("INFERMESH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The `mesh` command in this process: its exit code, and what it printed on stdout and stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
