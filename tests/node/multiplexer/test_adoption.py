"""What a multiplexer does with models that are awake when it starts."""

import pytest
import trio

from node.multiplexer import memory


async def test_a_model_that_was_left_awake_is_taken_over_and_no_other_is_woken_beside_it(autojump_clock, stage) -> None:
    scene = await stage(awake=["b"])
    await trio.sleep(3)
    assert scene.log == ["wake b"]  # which is idempotent, and proves that it answers
    assert scene.multiplexer.active.model == "b"
    assert {name: one.entry.state for name, one in scene.backends.items()} == {"a": "asleep", "b": "ready"}
    scene.ask("b")
    await trio.sleep(2)
    assert scene.log == ["wake b", "b-0"]
    scene.ask("a")
    await trio.sleep(5)
    assert scene.log == ["wake b", "b-0", "sleep b", "wake a", "a-0"]
    assert not any(scene.multiplexer.meter.hook_failures.values())


async def test_of_several_the_first_of_the_configuration_stays_and_the_others_sleep_in_their_order(autojump_clock, stage) -> None:
    scene = await stage(models="abcd", awake=["d", "b", "c"])
    await trio.sleep(5)
    assert scene.log == ["sleep c", "sleep d", "wake b"]
    assert [member.model for member in scene.multiplexer.accelerator.awake] == ["b"]


async def test_those_who_fit_together_all_stay(autojump_clock, stage) -> None:
    scene = await stage(models="abc", awake="abc", memory={"a": 60, "b": 60, "c": 40}, memory_budget="1KB")
    await trio.sleep(8)
    assert scene.log == ["wake a", "wake b", "wake c"]
    other = await stage(models="abc", awake="abc", memory={"a": 60_000, "b": 60_000, "c": 40_000}, memory_budget="100KB")
    await trio.sleep(8)
    assert other.log == ["sleep b", "wake a", "wake c"]


async def test_what_they_have_taken_already_counts_as_free(autojump_clock, stage, monkeypatch) -> None:
    async def free(device):
        return 30_000

    monkeypatch.setattr(memory, "free_memory", free)
    scene = await stage(models="ab", awake="a", memory={"a": 60_000, "b": 30_000}, memory_budget="free")
    await trio.sleep(3)
    assert scene.multiplexer.accelerator.budget == 90_000
    scene.ask("b")
    await trio.sleep(5)
    assert [member.model for member in scene.multiplexer.accelerator.awake] == ["a", "b"]


async def test_one_that_cannot_be_put_to_sleep_stays_instead_of_the_first_and_says_why(autojump_clock, stage) -> None:
    def stuck(models) -> None:
        models["b"].sleep_error = "it hangs"

    scene = await stage(awake="ab", prepare=stuck)
    await trio.sleep(5)
    assert scene.log == ["sleep b", "sleep a", "wake b"]
    assert scene.multiplexer.active.model == "b"
    assert scene.backends["b"].status().last_error == "b could not be put to sleep: it hangs"
    scene.ask("b")
    await trio.sleep(2)
    assert isinstance(scene.results["b-0"], list)


async def test_when_none_can_be_put_to_sleep_all_stay_and_no_other_is_woken(autojump_clock, stage) -> None:
    def stuck(models) -> None:
        models["a"].sleep_error = models["b"].sleep_error = "it hangs"

    scene = await stage(models="abc", awake="ab", prepare=stuck)
    await trio.sleep(8)
    assert {member.model for member in scene.multiplexer.accelerator.awake} == {"a", "b"}
    scene.ask("c")
    await trio.sleep(8)
    assert "wake c" not in scene.log
    assert "could not be put to sleep: it hangs" in scene.results["c-0"].message
    for model in "ab":
        scene.ask(model)
    await trio.sleep(3)
    assert isinstance(scene.results["a-0"], list)
    assert isinstance(scene.results["b-0"], list)


async def test_one_that_says_that_it_is_awake_and_does_not_answer_is_cleared_away(autojump_clock, stage) -> None:
    def broken(models) -> None:
        models["a"].wake_error = "no token came"

    scene = await stage(awake="a", prepare=broken)
    await trio.sleep(4)
    assert scene.log == ["wake a", "sleep a"]
    assert scene.backends["a"].entry.state == "failed"
    scene.ask("b")
    await trio.sleep(5)
    assert isinstance(scene.results["b-0"], list)


async def test_requests_that_come_before_it_is_settled_wait(autojump_clock, stage) -> None:
    scene = await stage(awake="ab")
    scene.ask("a")
    scene.ask("b")
    await trio.sleep(12)
    assert all(isinstance(scene.results[name], list) for name in ("a-0", "b-0"))
    assert scene.log == ["sleep b", "wake a", "a-0", "sleep a", "wake b", "b-0"]


@pytest.mark.parametrize("state", ["asleep", "failed", "loading", "ready"])
async def test_a_model_that_the_node_runs_itself_is_awake_only_when_it_is(state) -> None:
    from mesh.messages.record import ModelEntry
    from node.multiplexer.loaded import Loaded

    class Backend:
        entry = ModelEntry(id="m", state=state)

    assert await Loaded(Backend()).alive() == (state in ("loading", "ready"))
