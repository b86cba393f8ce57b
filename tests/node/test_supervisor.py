import pytest
import trio
import trio.testing

from node.supervisor import CRASH_LOOP, Refused, RestartHistory, RestartPolicy, Supervisor


def test_the_first_restart_is_at_once_and_then_the_wait_doubles_up_to_the_longest() -> None:
    history = RestartHistory(RestartPolicy(delay=5, longest=60))
    assert [history.died(0) for _ in range(7)] == [0, 5, 10, 20, 40, 60, 60]


def test_a_stable_run_forgets_the_past() -> None:
    history = RestartHistory(RestartPolicy(stable=60))
    for _ in range(5):
        history.died(1)
    assert history.crash_loop
    assert history.died(60) == 0
    assert not history.crash_loop
    assert history.died(59) == 5


def test_it_is_over_at_the_limit() -> None:
    history = RestartHistory(RestartPolicy(limit=2))
    assert [history.died(0), history.died(0), history.died(0)] == [0, 5, None]


def test_no_restart_at_all_can_be_asked_for() -> None:
    assert RestartHistory(RestartPolicy(limit=0)).died(100) is None


def test_a_thousand_deaths_do_not_overflow() -> None:
    history = RestartHistory(RestartPolicy())
    assert [history.died(0) for _ in range(2000)][-1] == 60


class Recorder:
    """A supervisor, its lives and what it told."""

    def __init__(self, **policy) -> None:
        self.told: list[str] = []
        self.starts: list[float] = []
        self.supervisor = Supervisor("it", policy=RestartPolicy(**policy), changed=self._changed)

    def _changed(self) -> None:
        self.told.append(self.supervisor.state)

    async def live(self) -> str:
        self.starts.append(trio.current_time())
        self.supervisor.ready()
        await trio.sleep(1)
        return "boom"


async def test_five_seconds_of_running_are_stable(autojump_clock) -> None:
    recorder = Recorder()

    async def live() -> str:
        recorder.starts.append(trio.current_time())
        recorder.supervisor.ready()
        await trio.sleep(5)
        return "boom"

    with trio.move_on_after(42):
        await recorder.supervisor.run(live)
    assert [start - recorder.starts[0] for start in recorder.starts] == [5 * number for number in range(9)]
    assert "failed" not in recorder.told


async def test_asleep_nothing_lives_until_it_is_woken(autojump_clock) -> None:
    recorder = Recorder()
    supervisor = recorder.supervisor
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, recorder.live)
        await trio.sleep(0.5)
        await supervisor.sleep()
        await supervisor.sleep()
        assert (supervisor.state, supervisor.uptime, supervisor.restarts) == ("asleep", 0, 0)
        await trio.sleep(1000)
        assert len(recorder.starts) == 1
        assert await supervisor.wake()
        assert (supervisor.state, supervisor.restarts, len(recorder.starts)) == ("ready", 0, 2)
        nursery.cancel_scope.cancel()
    assert recorder.told == ["ready", "loading", "asleep", "loading", "ready"]


async def test_a_nap_that_is_called_off_does_no_harm(autojump_clock) -> None:
    recorder = Recorder()
    supervisor = recorder.supervisor

    async def live() -> str:
        recorder.starts.append(trio.current_time())
        supervisor.ready()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
        return "never"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, live)
        await trio.sleep(1)
        nursery.start_soon(supervisor.sleep)
        await trio.sleep(0.1)
        assert await supervisor.wake()
        assert len(recorder.starts) == 2
        await supervisor.sleep()
        assert supervisor.state == "asleep"
        assert not recorder.supervisor.last_error
        nursery.cancel_scope.cancel()


async def test_what_is_over_cannot_be_woken_or_put_to_sleep() -> None:
    recorder = Recorder()

    async def live() -> str:
        raise Refused("no")

    with trio.fail_after(5):
        await recorder.supervisor.run(live)
        await recorder.supervisor.sleep()
        assert recorder.supervisor.state == "failed"
        assert not await recorder.supervisor.wake()


async def test_sleep_ends_a_crash_loop(autojump_clock) -> None:
    recorder = Recorder()

    async def live() -> str:
        return "no luck"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.supervisor.run, live)
        await recorder.supervisor.settled.wait()
        await recorder.supervisor.sleep()
        assert recorder.supervisor.state == "asleep"
        assert not await recorder.supervisor.wake()
        assert recorder.supervisor.last_error == "crash loop, 3 deaths in a row: no luck"
        nursery.cancel_scope.cancel()


async def test_lives_follow_each_other_with_the_policys_waits(autojump_clock) -> None:
    recorder = Recorder()
    with trio.move_on_after(25):
        await recorder.supervisor.run(recorder.live)
    first = recorder.starts[0]
    assert [round(start - first, 3) for start in recorder.starts] == [0, 1, 7, 18]
    assert recorder.supervisor.restarts == 3
    assert recorder.supervisor.last_error == "crash loop, 4 deaths in a row: boom"
    assert recorder.told[:5] == ["ready", "loading", "ready", "loading", "ready"]


async def test_a_crash_loop_is_failed_and_settled_until_it_is_ready_again(autojump_clock) -> None:
    recorder = Recorder()
    lives = 0

    async def live() -> str:
        nonlocal lives
        lives += 1
        if lives <= CRASH_LOOP:
            return "no luck"
        return await recorder.live()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.supervisor.run, live)
        await recorder.supervisor.settled.wait()
        assert recorder.supervisor.state == "failed"
        assert not recorder.supervisor.refused
        assert "crash loop" in recorder.supervisor.last_error
        await trio.sleep(10.5)
        assert recorder.supervisor.state == "ready"
        assert recorder.supervisor.uptime > 0
        nursery.cancel_scope.cancel()


async def test_a_refusal_ends_it_for_good_and_keeps_the_message() -> None:
    recorder = Recorder()

    async def live() -> str:
        raise Refused("no tokenizer; add one")

    await recorder.supervisor.run(live)
    assert recorder.supervisor.state == "failed"
    assert recorder.supervisor.refused
    assert recorder.supervisor.last_error == "no tokenizer; add one"
    assert recorder.supervisor.settled.is_set()
    assert recorder.told == ["failed"]


async def test_giving_up_is_failed_and_says_so(autojump_clock) -> None:
    recorder = Recorder(limit=1)
    await recorder.supervisor.run(recorder.live)
    assert recorder.supervisor.state == "failed"
    assert recorder.supervisor.last_error == "given up after 2 deaths in a row: boom"
    assert recorder.supervisor.uptime == 0


async def test_a_loss_is_told_before_the_life_has_ended(autojump_clock) -> None:
    recorder = Recorder()
    recorder.supervisor.ready()
    recorder.supervisor.lost()
    recorder.supervisor.lost()
    assert recorder.told == ["ready", "loading"]


@pytest.mark.parametrize("ran", [0.0, 4.9])
def test_short_runs_count_as_a_streak(ran: float) -> None:
    history = RestartHistory(RestartPolicy())
    for _ in range(CRASH_LOOP):
        history.died(ran)
    assert history.crash_loop
