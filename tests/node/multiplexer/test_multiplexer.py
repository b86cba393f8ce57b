import pytest
import trio

from mesh.errors import Busy, NotFound, TimedOut, Unavailable
from mesh.messages.inference import InferenceRequest


async def test_a_request_wakes_its_model_and_another_one_puts_it_to_sleep(autojump_clock, stage) -> None:
    scene = await stage()
    scene.ask("a")
    await trio.sleep(4)
    scene.ask("b")
    await trio.sleep(4)
    assert scene.log == ["wake a", "a-0", "sleep a", "wake b", "b-0"]
    assert scene.multiplexer.active.model == "b"
    assert scene.multiplexer.meter.switches == {("", "a", "done"): 1, ("a", "b", "done"): 1}


async def test_a_thousand_wait_for_one_wake_and_begin_in_their_order_and_those_who_left_cost_nothing(
    autojump_clock, stage
) -> None:
    scene = await stage()
    scopes = [scene.ask("a", number) for number in range(3)]
    await trio.sleep(0.1)  # the scheduler may start tasks of one tick in any order
    for number in range(3, 1000):
        scopes.append(scene.ask("a", number))
        await trio.lowlevel.checkpoint()
    for scope in scopes[::3][:300]:
        scope.cancel()
    await trio.sleep(5)
    begun = [entry for entry in scene.log if entry.startswith("a-")]
    kept = [number for number in range(1000) if number % 3 or number >= 900]
    assert scene.log[0] == "wake a"
    assert scene.log.count("wake a") == 1
    assert sorted(int(entry[2:]) for entry in begun) == kept
    assert [int(entry[2:]) for entry in begun][2:] == kept[2:]
    assert sum(isinstance(result, list) for result in scene.results.values()) == 700


async def test_what_runs_ends_before_a_switch_and_what_comes_meanwhile_waits(autojump_clock, stage) -> None:
    scene = await stage()
    scene.models["a"].work_takes = 10
    scene.ask("a", 1)
    await trio.sleep(3)
    scene.ask("b", 1)
    await trio.sleep(1)
    scene.ask("a", 2)
    await trio.sleep(40)
    assert scene.log == ["wake a", "a-1", "sleep a", "wake b", "b-1", "sleep b", "wake a", "a-2"]
    assert all(isinstance(result, list) for result in scene.results.values())


async def test_a_drain_has_a_limit(autojump_clock, stage) -> None:
    scene = await stage(drain_timeout_secs=5)
    scene.models["a"].work_takes = 1000
    scene.ask("a")
    await trio.sleep(3)
    scene.ask("b")
    await trio.sleep(10)
    assert isinstance(scene.results["b-0"], list)
    assert scene.results["a-0"].code == "model_switched"
    assert scene.results["a-0"].retriable


async def test_without_drain_what_runs_is_interrupted(autojump_clock, stage) -> None:
    scene = await stage(drain_before_switch=False)
    scene.models["a"].work_takes = 1000
    scene.ask("a")
    await trio.sleep(3)
    scene.ask("b")
    await trio.sleep(0.1)
    assert scene.results["a-0"].code == "model_switched"


async def test_a_switch_that_nobody_waits_for_any_more_is_not_made(autojump_clock, stage) -> None:
    scene = await stage()
    scene.models["a"].work_takes = 10
    scene.ask("a", 1)
    await trio.sleep(3)
    waiter = scene.ask("b")
    await trio.sleep(1)
    waiter.cancel()
    scene.ask("a", 2)
    await trio.sleep(20)
    assert scene.log == ["wake a", "a-1", "a-2"]


async def test_a_model_stays_for_its_minimum(autojump_clock, stage) -> None:
    scene = await stage(min_active_secs=30)
    scene.ask("a")
    await trio.sleep(4)
    scene.ask("b")
    await trio.sleep(27)
    assert "wake b" not in scene.log
    await trio.sleep(5)
    assert "wake b" in scene.log


async def test_a_wait_has_a_limit_when_one_is_set(autojump_clock, stage) -> None:
    scene = await stage(request_timeout_secs=1)
    scene.ask("a")
    await trio.sleep(1.5)
    assert isinstance(scene.results["a-0"], TimedOut)
    assert "request_timeout_secs" in scene.results["a-0"].message


async def test_a_line_has_an_end(autojump_clock, stage) -> None:
    scene = await stage(max_waiting=2)
    for number in range(2):
        scene.ask("a", number)
    await trio.sleep(0.1)
    scene.ask("a", 2)
    await trio.sleep(0.1)
    assert isinstance(scene.results["a-2"], Busy)


async def test_a_failed_wake_is_told_and_the_previous_model_is_awake_again(autojump_clock, stage) -> None:
    scene = await stage()
    scene.ask("a", 1)
    await trio.sleep(4)
    scene.models["b"].wake_error = "no room"
    scene.ask("b", 1)
    await trio.sleep(10)
    error = scene.results["b-1"]
    assert (error.code, error.status) == ("wake_failed", 503)
    assert "no room" in error.message
    assert scene.log == ["wake a", "a-1", "sleep a", "wake b", "sleep b", "wake a"]
    assert scene.multiplexer.active.model == "a"
    assert scene.backends["b"].status().last_error == "no room"


async def test_a_model_that_failed_is_left_alone_for_a_while_and_then_tried_again(autojump_clock, stage) -> None:
    scene = await stage()
    scene.models["b"].wake_error = "no room"
    scene.ask("b", 1)
    await trio.sleep(3)
    assert scene.backends["b"].entry.state == "failed"
    scene.ask("b", 2)
    await trio.sleep(0.1)
    assert scene.results["b-2"].code == "wake_failed"
    assert scene.log.count("wake b") == 1
    scene.models["b"].wake_error = None
    await trio.sleep(6)
    assert scene.backends["b"].entry.state == "asleep"
    scene.ask("b", 3)
    await trio.sleep(5)
    assert isinstance(scene.results["b-3"], list)


async def test_when_nobody_can_be_woken_nobody_is_awake(autojump_clock, stage) -> None:
    scene = await stage()
    scene.ask("a", 1)
    await trio.sleep(4)
    for model in scene.models.values():
        model.wake_error = "no room"
    scene.ask("b", 1)
    await trio.sleep(10)
    assert scene.multiplexer.active is None
    assert {backend.entry.state for backend in scene.backends.values()} <= {"failed", "asleep"}


async def test_a_model_that_cannot_be_put_to_sleep_stays_and_the_other_is_not_woken(autojump_clock, stage) -> None:
    scene = await stage()
    scene.ask("a", 1)
    await trio.sleep(4)
    scene.models["a"].sleep_error = "it hangs"
    scene.ask("b", 1)
    await trio.sleep(5)
    assert "wake b" not in scene.log
    assert "it hangs" in scene.results["b-1"].message
    scene.ask("a", 2)
    await trio.sleep(2)
    assert isinstance(scene.results["a-2"], list)


async def test_a_model_that_is_no_longer_well_is_woken_again(autojump_clock, stage) -> None:
    scene = await stage(alive_interval_secs=5)
    scene.ask("a", 1)
    await trio.sleep(4)
    scene.models["a"].well = False
    await trio.sleep(10)
    assert scene.log == ["wake a", "a-1", "wake a"]
    scene.ask("a", 2)
    await trio.sleep(2)
    assert isinstance(scene.results["a-2"], list)
    assert scene.multiplexer.meter.hook_failures["a", "alive"] == 1


async def test_gateways_see_who_is_ready_who_sleeps_and_what_waking_costs(autojump_clock, stage) -> None:
    scene = await stage()
    told = []
    for backend in scene.backends.values():
        backend.changed = lambda: told.append({name: one.entry.state for name, one in scene.backends.items()})
    assert {backend.entry.state for backend in scene.backends.values()} == {"asleep"}
    scene.ask("a")
    await trio.sleep(1)
    assert scene.backends["a"].load.waiting == 1
    assert scene.backends["a"].entry.state == "asleep"
    await trio.sleep(3)
    assert {"a": "ready", "b": "asleep"} in told
    assert scene.backends["a"].load.state == "ready"
    scene.ask("b")
    await trio.sleep(6)
    assert scene.backends["a"].entry.state == "asleep"
    assert scene.backends["a"].status().state == "asleep"
    assert scene.backends["b"].status().running
    assert scene.multiplexer.costs.averages["a", "b"] == pytest.approx(2.5)
    assert scene.backends["b"].entry.wake_seconds > 0


async def test_cost_aware_gathers_work_where_fifo_switches(autojump_clock, stage) -> None:
    counts = {}
    for policy in ("fifo", "cost_aware"):
        scene = await stage(policy=policy)
        for number in range(40):
            scene.ask("ab"[number % 2], number)
            await trio.sleep(0.5)
        await trio.sleep(60)
        assert len(scene.results) == 40
        counts[policy] = scene.log.count("wake a") + scene.log.count("wake b")
    assert counts["cost_aware"] < counts["fifo"]


async def test_an_operator_switches_puts_to_sleep_and_pins(autojump_clock, stage) -> None:
    scene = await stage()
    await scene.multiplexer.switch("b")
    assert scene.multiplexer.active.model == "b"
    await scene.multiplexer.sleep("b")
    await scene.multiplexer.sleep("a")
    assert scene.multiplexer.active is None
    await scene.multiplexer.pin("a")
    scene.ask("b")
    await trio.sleep(60)
    assert scene.results == {}
    assert (scene.multiplexer.mode, scene.multiplexer.pinned) == ("manual", "a")
    scene.multiplexer.set_mode("auto")
    await trio.sleep(10)
    assert isinstance(scene.results["b-0"], list)


async def test_an_order_about_an_adapter_is_about_the_model_that_it_goes_with(autojump_clock, stage) -> None:
    scene = await stage()
    scene.multiplexer.adapters = {"tuned": "b"}
    await scene.multiplexer.switch("tuned")
    assert scene.multiplexer.active.model == "b"
    await scene.multiplexer.sleep("tuned")
    assert scene.multiplexer.active is None


async def test_an_order_that_cannot_be_carried_out_says_why(autojump_clock, stage) -> None:
    scene = await stage()
    scene.models["b"].wake_error = "no room"
    with pytest.raises(Unavailable, match="no room"):
        await scene.multiplexer.pin("b")
    assert scene.multiplexer.mode == "auto"
    with pytest.raises(NotFound, match="it has a, b"):
        await scene.multiplexer.switch("c")


async def test_orders_are_bounded(autojump_clock, stage) -> None:
    scene = await stage()
    refused = []

    async def order() -> None:
        try:
            await scene.multiplexer.switch("a")
        except Busy as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(order)
    assert len(refused) == 24


async def test_the_page_of_figures_has_every_series(autojump_clock, stage) -> None:
    scene = await stage()
    scene.ask("a")
    await trio.sleep(4)
    page = scene.multiplexer.metrics()
    assert 'infermesh_switch_total{from="",to="a",result="done"} 1' in page
    assert 'infermesh_switch_duration_seconds_bucket{le="2.5"} 1' in page
    assert 'infermesh_switch_cost_ema_seconds{from="",to="a"} 2' in page
    assert 'infermesh_request_queue_depth{model="b"} 0' in page
    assert 'infermesh_request_queue_wait_seconds_count{model="a"} 1' in page
    assert 'infermesh_model_in_flight{model="a"} 0' in page
    assert 'infermesh_hook_duration_seconds_count{model="a",hook="wake"} 1' in page
    assert 'infermesh_hook_failures_total{model="a",hook="wake"} 0' in page


async def test_the_mock_takes_its_time_to_wake(autojump_clock, nursery) -> None:
    from node.backends.mock import MockSettings
    from node.multiplexer.mock import SleepyMock

    mock = SleepyMock("m", MockSettings(wake_seconds=2))
    await nursery.start(mock.run)
    wanted = InferenceRequest(request_id="1", model="m", task="completion", prompt="p", max_tokens=3)
    with pytest.raises(Unavailable):
        await mock.infer(wanted, lambda _: None)
    began = trio.current_time()
    await mock.wake()
    assert trio.current_time() - began >= 2
    assert await mock.alive()
    events = []
    await mock.infer(wanted, events.append)
    assert events
    await mock.sleep()
    assert not await mock.alive()
