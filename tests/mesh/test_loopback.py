import pytest
import trio
import trio.testing

from mesh.identity import Identity
from mesh.loopback import Loopback
from mesh.messages.inference import InferenceRequest
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.record import open_record
from mesh.transport.memory import MemoryNetwork, MemoryTransport


class Service:
    def __init__(self) -> None:
        self.gate = trio.Event()

    async def infer(self, request, emit) -> None:
        await self.gate.wait()


@pytest.fixture
async def loopback():
    identity = Identity.generate()
    settings = PeerSettings(identity=identity, role="gateway", name="g", mesh="test")
    service = Service()
    peer = Peer(settings, MemoryTransport(identity, MemoryNetwork()), service)
    built = Loopback(peer, service)
    built.peer, built.service = peer, service
    return built


def models(count: int, state: str = "ready") -> tuple[list[ModelEntry], dict[str, ModelLoad]]:
    entries = [ModelEntry(id=f"model-{number:04}", state=state) for number in range(count)]
    return entries, {entry.id: ModelLoad(state) for entry in entries}


async def test_what_is_offered_is_in_our_record_and_in_our_own_registry(loopback):
    registry = loopback.peer.registry
    assert loopback.offer(*models(2)) == 2
    assert [entry.id for entry in open_record(loopback.peer.sealed).models] == ["model-0000", "model-0001"]
    (view,) = registry.nodes("model-0001")
    assert (view.peer_id, view.link, view.live) == (loopback.peer_id, loopback, True)
    loopback.offer(*models(2, "failed"))
    assert {entry.state for entry in registry.catalog()} == {"failed"}
    assert loopback.offer([], {}) == 0
    assert registry.nodes() == []
    assert open_record(loopback.peer.sealed).models == []


async def test_others_hear_of_what_fits_and_we_serve_all(loopback):
    told = loopback.offer(*models(500))
    assert 5 < told < 500
    assert len(open_record(loopback.peer.sealed).models) == told
    assert len(loopback.peer.registry.catalog()) == 500


async def test_requests_are_counted_while_they_run(loopback):
    request = InferenceRequest(request_id="r", model="m")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loopback.infer, request, print)
        await trio.testing.wait_all_tasks_blocked()
        assert loopback.in_flight == 1
        loopback.service.gate.set()
    assert loopback.in_flight == 0
