import pytest
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, TimedOut, Unavailable
from node.backends.usage import Usage


async def test_what_goes_well_counts_with_its_time(autojump_clock) -> None:
    usage = Usage()
    for seconds in (1, 3):
        with usage.request():
            assert usage.active == 1
            await trio.sleep(seconds)
    assert (usage.requests, usage.successful, usage.failed, usage.active, usage.latency) == (2, 2, 0, 0, 4)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (BackendFailed("x"), 1),
        (TimedOut("x"), 1),
        (Unavailable("x"), 1),
        (RuntimeError("x"), 1),
        (BadRequest("x"), 0),
        (Busy("x"), 0),
    ],
)
async def test_only_our_own_faults_are_failures(error: Exception, failed: int) -> None:
    usage = Usage()
    with pytest.raises(type(error)), usage.request():
        raise error
    assert (usage.requests, usage.successful, usage.failed, usage.active) == (1, 0, failed, 0)


async def test_a_client_that_leaves_is_neither() -> None:
    usage = Usage()
    with trio.move_on_after(0), usage.request():
        await trio.sleep_forever()
    assert (usage.requests, usage.successful, usage.failed, usage.active) == (1, 0, 0, 0)


async def test_it_is_failing_while_most_fail_but_not_for_being_away() -> None:
    usage = Usage()
    for _ in range(5):
        with pytest.raises(Unavailable), usage.request():
            raise Unavailable("asleep")
    assert not usage.failing
    for _ in range(3):
        with pytest.raises(BackendFailed), usage.request():
            raise BackendFailed("broke")
    assert usage.failing
