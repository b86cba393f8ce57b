import trio

from mesh.messages.inference import Delta
from mesh.service import paced, room
from node.backends.activity import Activity


async def test_who_waits_for_the_server_makes_it_late_and_every_event_does_not(autojump_clock):
    activity = Activity()
    assert activity.stalled == 0
    seen: list = []
    with activity.watching(seen.append) as emit:
        await trio.sleep(5)
        assert activity.stalled == 5
        emit(Delta(0, [], "x"))
        assert (activity.stalled, activity.in_flight, activity.steps) == (0, 1, 1)
        await trio.sleep(3)
        assert activity.stalled == 3
    assert (activity.stalled, activity.in_flight) == (0, 0)
    assert seen == [Delta(0, [], "x")]


async def test_who_waits_for_its_reader_does_not_make_the_server_late(autojump_clock):
    activity = Activity()

    async def slowly() -> None:
        await trio.sleep(100)

    async def request() -> None:
        with activity.watching(paced(lambda _: None, slowly)) as emit:
            await room(emit)
            await trio.sleep(2)
            assert activity.stalled == 2

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.sleep(50)
        assert (activity.in_flight, activity.stalled) == (1, 0)
