"""The real process over a real socket pair."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from mesh.framing import FrameReader, frame
from mesh.messages.inference import Accepted, Delta, Done, Fail, InferenceRequest
from mesh.messages.worker import Abort, Alive, Doze, Dozed, FromWorker, Loading, Ready, Refusal, Step, Submit
from node.worker.main import NICENESS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

HANG = 20
"""Seconds after which a process counts as hanging; it ends within two on a machine that is not overloaded."""


class Worker:
    """A worker process and the node's end of its socket."""

    def __init__(self, model: Path, *extra: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(50)
        with theirs:
            options = {"model": model, "device": "cpu", "dtype": "float32", "threads": 1, "socket-fd": theirs.fileno()}
            flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node.worker", *flags, *extra],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        self._reader = FrameReader()
        self._messages: list[Any] = []
        self.alive: list[Alive] = []

    def send(self, *messages: Submit | Abort | Doze) -> None:
        self.socket.sendall(frame(msgspec.msgpack.encode(messages)))

    def receive(self) -> Any:
        """The next message but `Alive`; None at the end of the stream."""
        while isinstance(message := self.hear(), Alive):
            self.alive.append(message)
        return message

    def hear(self) -> Any:
        """The next message; None at the end of the stream."""
        while not self._messages:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            for body in self._reader.feed(data):
                self._messages += msgspec.msgpack.decode(body, type=list[FromWorker])
        return self._messages.pop(0)

    def wait_ready(self) -> Ready:
        message = self.receive()
        assert isinstance(message, Loading)
        while isinstance(message, Loading):
            message = self.receive()
        assert isinstance(message, Ready), message
        return message

    def events(self, *numbers: int) -> dict[int, list[Any]]:
        """All events until each of the requests has ended."""
        events: dict[int, list[Any]] = {number: [] for number in numbers}
        while not all(event and isinstance(event[-1], Done | Fail) for event in events.values()):
            step = self.receive()
            assert isinstance(step, Step)
            for number, event in step.events:
                events[number].append(event)
        return events

    def end(self) -> None:
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        assert self.process.stderr
        self.process.stderr.close()


@pytest.fixture
def start() -> Iterator[Any]:
    workers: list[Worker] = []

    def make(model: Path, *extra: str) -> Worker:
        workers.append(Worker(model, *extra))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", **{"task": "completion", "prompt": "A mesh", "max_tokens": 12, **fields})


def test_a_worker_gives_memory_back_keeps_its_process_and_answers_as_before(start: Any, models_folder: Path) -> None:
    worker = start(models_folder / "llama", "--cache-mib", "64")
    assert worker.wait_ready().memory > 1 << 20
    worker.send(Submit(1, request()))
    before = worker.events(1)[1]
    worker.send(Doze(7, asleep=True), Submit(2, request()))
    dozed = worker.receive()
    assert isinstance(dozed, Dozed)
    assert (dozed.number, dozed.asleep, dozed.error) == (7, True, "")
    assert "MiB of keys and values given back" in dozed.note
    (refused,) = worker.events(2)[2]
    assert refused.code == "model_asleep"
    worker.send(Doze(8, asleep=False))
    woken = worker.receive()
    assert (woken.number, woken.asleep, woken.error) == (8, False, "")
    worker.send(Submit(3, request()))
    after = worker.events(3)[3]
    ids = [[token for event in events if isinstance(event, Delta) for token in event.token_ids] for events in (before, after)]
    assert len(ids[0]) == 12
    assert ids[0] == ids[1]


def test_a_worker_loads_serves_cancels_and_ends_with_its_node(start: Any, models_folder: Path) -> None:
    worker = start(models_folder / "llama", "--slots", "4", "--context", "300")
    ready = worker.wait_ready()
    assert (ready.slots, ready.context_length, ready.dtype) == (4, 300, "float32")

    chat = request(task="chat", prompt=None, messages=[{"role": "user", "content": "Hi"}], seed=3)
    worker.send(Submit(1, chat), Submit(2, request(max_tokens=0)), Submit(3, chat))
    events = worker.events(1, 2, 3)
    assert isinstance(events[1][0], Accepted)
    assert isinstance(events[1][-1], Done)
    assert all(isinstance(event, Delta) for event in events[1][1:-1])
    assert [fail.kind for fail in events[2]] == ["BadRequest"]
    assert events[3][1:-1] == events[1][1:-1]

    worker.send(Submit(4, request(max_tokens=290, stop=["no such text"])), Submit(5, request()))
    worker.send(Abort(4))
    ended = worker.events(4, 5)
    assert ended[4][-1].code == "cancelled" or ended[4][-1].usage.completion_tokens < 290
    assert isinstance(ended[5][-1], Done)

    before = cpu_seconds(worker.process.pid)
    time.sleep(0.5)
    assert cpu_seconds(worker.process.pid) - before < 0.2  # idle is not spinning

    worker.socket.close()
    assert worker.process.wait(HANG) == 0


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("phase", ["starting", "checking"])
def test_closing_the_socket_ends_a_worker_that_loads(start: Any, models_folder: Path, phase: str) -> None:
    worker = start(models_folder / "llama")
    while worker.receive().phase != phase:
        pass
    worker.socket.close()
    assert worker.process.wait(HANG) == 0
    assert b"ready" not in worker.process.stderr.read()


def test_what_cannot_be_served_is_refused(start: Any, models_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models_folder / "llama", tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    worker = start(folder)
    message = worker.receive()
    while isinstance(message, Loading):
        message = worker.receive()
    assert isinstance(message, Refusal)
    assert "pickle" in message.message
    assert worker.process.wait(10) == 2
    assert b"pickle" in worker.process.stderr.read()


def test_wrong_arguments_end_at_once() -> None:
    command = [sys.executable, "-m", "node.worker", "--model", "x", "--socket-fd", "3", "--slots", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 2
    assert "--slots must be at least 1" in ended.stderr


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this system does not share its cores between sessions")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_worker_gives_way_to_its_node(own_session):
    script = "from node.worker.main import _give_way; _give_way(); print(open('/proc/self/autogroup').read())"
    # In a session that is not its own, it must not make the others slow.
    command = [sys.executable, "-c", script if own_session else f"import os\nif os.fork() == 0:\n    {script}\nelse: os.wait()"]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"nice {NICENESS if own_session else 0}")
