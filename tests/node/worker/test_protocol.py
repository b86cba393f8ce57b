"""The worker's side of the socket, over real socket pairs."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from mesh.errors import BadRequest
from mesh.framing import FrameReader, frame
from mesh.messages.inference import Delta, InferenceRequest
from mesh.messages.worker import Abort, Alive, EngineLoad, EngineStats, FromWorker, Loading, Step, Submit, ToWorker
from node.worker import protocol
from node.worker.intake import Prepared
from node.worker.protocol import NodeConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = InferenceRequest(request_id="r", model="m", task="completion", prompt="x")


class Pair:
    """A connection and the node's end of its socket."""

    def __init__(self) -> None:
        self.node, worker = socket.socketpair()
        self.node.settimeout(20)
        self.ended = threading.Event()
        self.worker = worker
        self.connection = NodeConnection(worker, on_end=self.ended.set)
        self._reader = FrameReader()

    def send(self, *messages: ToWorker) -> None:
        self.node.sendall(frame(msgspec.msgpack.encode(messages)))

    def receive(self, count: int) -> list[Any]:
        messages: list[Any] = []
        while len(messages) < count:
            for body in self._reader.feed(self.node.recv(1 << 16)):
                messages += msgspec.msgpack.decode(body, type=list[FromWorker])
        return messages


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.node.close()
    made.connection.flush(5)
    assert made.ended.wait(20)
    made.worker.close()


def test_messages_arrive_in_order(pair: Pair) -> None:
    pair.connection.start()
    pair.send(Submit(1, REQUEST), Abort(1))
    pair.send(Submit(2, REQUEST))
    messages: list[ToWorker] = []
    while len(messages) < 3:
        messages += pair.connection.receive(wait=True)
    assert messages == [Submit(1, REQUEST), Abort(1), Submit(2, REQUEST)]
    assert pair.connection.receive(wait=False) == []


def test_what_is_pending_shares_a_frame(pair: Pair) -> None:
    for done in range(5):
        pair.connection.send(Loading(done, 5))
    pair.connection.start()
    (size,) = (int.from_bytes(pair.node.recv(4, socket.MSG_PEEK)),)
    assert pair.receive(5) == [Loading(done, 5) for done in range(5)]
    assert size == len(msgspec.msgpack.encode([Loading(done, 5) for done in range(5)]))


def test_more_than_a_frame_holds_is_cut(pair: Pair) -> None:
    load = EngineLoad(0, 0, 0, 0)
    steps = [Step(load=load, events=[(number, Delta(0, [1], "x" * 1_500_000))]) for number in range(4)]
    for step in steps:
        pair.connection.send(step)
    pair.connection.start()
    assert pair.receive(4) == steps


def test_the_end_of_the_stream_ends_the_process(pair: Pair) -> None:
    pair.connection.start()
    pair.node.close()
    assert pair.ended.wait(20)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", frame(b"\x93"), frame(msgspec.msgpack.encode([{"type": "dance"}]))])
def test_a_broken_stream_ends_the_process(pair: Pair, garbage: bytes) -> None:
    pair.connection.start()
    pair.node.sendall(garbage)
    assert pair.ended.wait(20)


def test_the_end_is_noticed_while_nobody_takes_messages(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.connection.start()
    pair.send(*[Abort(number) for number in range(protocol.MOST_PENDING + 10)])
    assert not pair.ended.wait(0.3)
    pair.node.close()
    assert pair.ended.wait(20)


def test_how_the_engine_is_is_told_although_it_says_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ALIVE_EVERY", 0.02)
    beats = itertools.count(1)
    pair.connection.alive = lambda: Alive(step=next(beats), running=1, waiting=0, busy_seconds=0.0, stats=EngineStats())
    pair.connection.start()
    assert [message.step for message in pair.receive(3)[:3]] == [1, 2, 3]


def test_what_was_prepared_here_arrives_like_a_message(pair: Pair) -> None:
    pair.connection.start()
    prepared = Prepared(7, BadRequest("x"))
    pair.connection.post(prepared)
    assert pair.connection.receive(wait=True) == [prepared]


def test_a_node_that_does_not_read_stops_the_engine(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ALIVE_EVERY", 0.01)
    pair.connection.alive = lambda: Alive(step=0, running=1, waiting=0, busy_seconds=0.0, stats=EngineStats())
    pair.connection.start()
    most = 3 * protocol.MOST_PENDING
    sent = 0

    def flood() -> None:
        nonlocal sent
        for number in range(most):
            pair.connection.send(Step(load=EngineLoad(number, 0, 0, 0), events=[(1, Delta(0, [1], "x" * 1000))]))
            sent += 1

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    assert sent < most
    received: list[int] = []
    while len(received) < most:
        received += [message.load.step for message in pair.receive(1) if isinstance(message, Step)]
    thread.join(20)
    assert sent == most
    assert received == list(range(most))


def test_what_the_socket_takes_goes_without_the_writer(pair: Pair) -> None:
    pair.connection.start()
    with pair.connection._writing:  # the writer can do nothing meanwhile
        threading.Thread(target=pair.connection.send, args=(Loading(1, 2),)).start()
        pair.node.settimeout(0.3)
        with pytest.raises(TimeoutError):
            pair.node.recv(1)
    pair.node.settimeout(20)
    assert pair.receive(1) == [Loading(1, 2)]
    end = time.monotonic() + 20
    while pair.connection._behind and time.monotonic() < end:
        time.sleep(0.01)
    pair.connection._outgoing.put = None  # type: ignore[assignment, method-assign]
    pair.connection.send(Loading(2, 2))
    assert pair.receive(1) == [Loading(2, 2)]
    del pair.connection._outgoing.put


def test_a_message_larger_than_the_socket_arrives_whole_and_in_order(pair: Pair) -> None:
    pair.connection.start()
    large = [Loading(number, 9, "x" * (1 << 20)) for number in range(3)]
    threading.Thread(target=lambda: [pair.connection.send(each) for each in large]).start()
    assert pair.receive(3) == large
