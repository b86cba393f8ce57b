"""A request through a dispatch, and whether its answer is whole."""

from gateway.dispatch import Dispatch, DispatchLimits
from gateway.routing.router import Router
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest


def request(model: str = "m", **more) -> InferenceRequest:
    return InferenceRequest(request_id="r1", model=model, prompt="hello", task="completion", **more)


def dispatch_of(mesh, strategy: str = "round_robin", **limits) -> Dispatch:
    return Dispatch(Router(mesh.gateway.registry, strategy=strategy), limits=DispatchLimits(**limits))


async def events_of(dispatch: Dispatch, **more) -> list:
    events: list = []
    await dispatch.infer(request(**more), events.append)
    return events


def check_one_whole_answer(events: list, words: list[str]) -> None:
    """`Accepted`, each token once and in order, `Done`."""
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Done)
    deltas = events[1:-1]
    assert all(isinstance(event, Delta) for event in deltas)
    assert [event.offset for event in deltas] == list(range(len(words)))
    assert [event.text for event in deltas] == words


def in_order(mesh, *nodes):
    """The nodes as round robin takes them from its first turn on."""
    return sorted(nodes, key=lambda node: node.peer_id)
