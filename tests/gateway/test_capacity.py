import trio

from gateway.capacity import FRESH, MOST_ON_A_NODE, Capacity
from gateway.models import KnownModels
from gateway.routing.router import Router
from mesh.messages.inference import InferenceRequest


def capacity_of(mesh) -> Capacity:
    router = Router(mesh.gateway.registry)
    return Capacity(router, KnownModels(router.registry))


def request(**more) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", prompt="hello", task="completion", **more)


async def test_every_node_has_room_for_its_slots_and_one_more(autojump_clock, mesh):
    capacity = capacity_of(mesh)
    assert capacity.of("m") == 0
    told: list[int] = []
    capacity.changed(lambda: told.append(capacity.of("m")))
    await mesh.node()
    await trio.sleep(FRESH)
    assert capacity.of("m") == 4 + 1
    await mesh.node(aliases=("short",))
    assert told
    await trio.sleep(FRESH)
    assert capacity.of("m") == 10
    assert capacity.resolve("short") == "m"


async def test_a_node_that_goes_or_loads_has_no_room(autojump_clock, mesh):
    capacity = capacity_of(mesh)
    one, two = await mesh.node(), await mesh.node()
    assert capacity.of("m") == 10
    one.announce("loading")
    await mesh.sees(one, "loading")
    assert capacity.of("m") == 5
    two.kill()
    await mesh.until(lambda: capacity.of("m") == 0)


async def test_a_node_that_failed_counts_only_while_there_is_no_other(autojump_clock, mesh):
    router = Router(mesh.gateway.registry)
    capacity = Capacity(router, KnownModels(router.registry))
    one, two = await mesh.node(), await mesh.node()
    router.observations.of(one.peer_id, "m").fail(trio.current_time())
    assert capacity.of("m") == 5
    await trio.sleep(FRESH)
    router.observations.of(two.peer_id, "m").fail(trio.current_time())
    assert capacity.of("m") == 10


async def test_a_node_that_tells_no_slots_or_absurdly_many_is_bounded_by_its_link(autojump_clock, mesh):
    capacity = capacity_of(mesh)
    node = await mesh.node()
    for slots in (0, -5, 10**12):
        node.announce(slots=slots)
        await mesh.until(lambda: capacity.of("m") == MOST_ON_A_NODE)
        node.announce()
        await mesh.until(lambda: capacity.of("m") == 5)


async def test_nothing_is_predicted_before_every_node_was_seen_at_work(autojump_clock, mesh):
    router = Router(mesh.gateway.registry)
    capacity = Capacity(router, KnownModels(router.registry))
    assert capacity.seconds(request()) is None
    one, two = await mesh.node(), await mesh.node()
    router.observations.of(one.peer_id, "m").itl = 0.1
    assert capacity.seconds(request()) is None
    router.observations.of(two.peer_id, "m").itl = 0.01
    assert 0.1 <= capacity.seconds(request(max_tokens=10)) < 0.5


async def test_work_is_what_is_generated_and_a_little_for_the_prompt(autojump_clock, mesh):
    capacity = capacity_of(mesh)
    await mesh.node()
    assert capacity.cost(request(max_tokens=1)) == 1.0 + 1 / 16
    assert capacity.cost(request(max_tokens=10, n=3)) > 30
    assert capacity.cost(request()) > 100
