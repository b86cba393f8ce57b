"""A foreign service of one gateway, reached through another one, over the memory network."""

from functools import partial

import pytest
import trio

from gateway.dispatch import Dispatch, DispatchLimits
from gateway.registry_view.announce import keep_announcing
from gateway.registry_view.foreign import ForeignServices
from gateway.registry_view.view import View
from gateway.routing.router import Router
from mesh.errors import NotFound, Unavailable
from mesh.identity import Identity
from mesh.loopback import Loopback
from mesh.messages.inference import InferenceRequest
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport

REQUEST = InferenceRequest(request_id="r", model="m", prompt="x", task="completion")


@pytest.fixture
async def town(nursery, double):
    """A bootstrap peer and two gateways that know only it; `near` has foreign services."""

    class Town:
        network = MemoryNetwork(latency=0.001)
        foreign = ForeignServices(client=double)

        def peer(self, role, name, *bootstrap, service=None) -> Peer:
            identity = Identity.generate()
            settings = PeerSettings(identity=identity, role=role, name=name, mesh="test", bootstrap=list(bootstrap))
            return Peer(settings, MemoryTransport(identity, self.network), service)

        async def until(self, condition) -> None:
            with trio.fail_after(30):
                while not condition():  # noqa: ASYNC110 - the conditions are of many kinds
                    await trio.sleep(0.01)

    built = Town()
    bootstrap = built.peer("bootstrap", "way-in")
    await nursery.start(bootstrap.run)
    built.near = built.peer("gateway", "near", *bootstrap.addresses, service=built.foreign)
    built.other = built.peer("gateway", "other", *bootstrap.addresses)
    for peer in (built.near, built.other):
        await nursery.start(peer.run)
    await nursery.start(built.foreign.run)
    nursery.start_soon(partial(keep_announcing, built.foreign, Loopback(built.near, built.foreign)))
    return built


async def events_of(peer: Peer, **limits) -> list:
    events: list = []
    await Dispatch(Router(peer.registry), limits=DispatchLimits(**limits)).infer(REQUEST, events.append)
    return events


async def test_the_other_gateway_learns_of_the_service_and_routes_to_it(autojump_clock, town, registration):
    assert town.near.peer_id not in town.other.links
    await town.foreign.register(registration())
    await town.until(lambda: town.other.registry.nodes("m") and town.near.registry.nodes("m"))
    for peer in (town.other, town.near):
        accepted, delta, _ = await events_of(peer)
        assert accepted.node == town.near.peer_id
        assert delta.text == "http://far:8000"
    (view,) = town.other.registry.nodes("m")
    assert view.record.role == "gateway"
    (service,) = View(Dispatch(Router(town.other.registry)), ForeignServices()).all()
    assert (service["name"], service["metadata"]["models"]) == ("near-server", ["m"])


async def test_health_and_end_of_the_service_reach_the_other_gateway(autojump_clock, town, registration):
    await town.foreign.register(registration())
    await town.until(lambda: town.other.registry.nodes("m"))
    await town.foreign.beat("far", "stopped")
    await town.until(lambda: town.other.registry.catalog()[0].state == "failed")
    with pytest.raises(Unavailable):
        await events_of(town.other, queue_wait=0.1)
    await town.foreign.beat("far", "running")
    await town.until(lambda: town.other.registry.catalog()[0].state == "ready")
    await town.foreign.remove("far")
    await town.until(lambda: not town.other.registry.nodes() and not town.near.registry.nodes())
    with pytest.raises(NotFound):
        await events_of(town.other)
    assert town.near.peer_id not in town.near.registry.peers


async def test_more_models_than_a_record_holds_are_all_served_here_and_the_rest_is_named(
    autojump_clock, town, double, registration, caplog
):
    for number in range(5):
        double.models_of[f"http://s{number}:8000"] = [f"model-{number}-{index:02}-{'x' * 40}" for index in range(60)]
        await town.foreign.register(registration(f"s{number}"))
    await town.until(lambda: len(town.near.registry.catalog()) == 300)
    await town.until(lambda: town.other.registry.catalog())
    assert 5 < len(town.other.registry.catalog()) < 300
    assert "do not fit" in caplog.text
