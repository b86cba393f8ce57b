"""Several models awake together, as far as the memory that they take is known and fits."""

import pytest
import trio

from node.multiplexer import memory
from node.multiplexer.memory import budget, check_budget, parse_size

SIZES = {"a": 40_000, "b": 30_000, "c": 30_000, "d": 90_000}


def awake(scene) -> list[str]:
    return [member.model for member in scene.multiplexer.accelerator.awake]


async def ask(scene, *models) -> None:
    for model in models:
        scene.ask(model, len(scene.results))
        await trio.sleep(5)
    assert all(isinstance(result, list) for result in scene.results.values())


async def test_who_fits_is_woken_beside_the_others_and_room_is_made_by_who_was_used_least_recently(autojump_clock, stage) -> None:
    scene = await stage(models="abcd", memory=SIZES, memory_budget="100KB")
    await ask(scene, "a", "b", "c")
    assert awake(scene) == ["a", "b", "c"]
    assert [entry for entry in scene.log if entry.startswith("sleep")] == []
    await ask(scene, "a", "d")
    assert awake(scene) == ["d"]
    assert [entry for entry in scene.log if entry.startswith("sleep")] == ["sleep b", "sleep c", "sleep a"]
    await ask(scene, "c")
    assert awake(scene) == ["c"]


async def test_nobody_makes_room_whose_room_is_not_needed(autojump_clock, stage) -> None:
    scene = await stage(models="abc", memory={"a": 10_000, "b": 80_000, "c": 80_000}, memory_budget="100KB")
    await ask(scene, "a", "b", "c")
    assert awake(scene) == ["a", "c"]
    assert "sleep a" not in scene.log


async def test_a_model_of_unknown_memory_is_awake_alone_until_it_is_measured(autojump_clock, stage) -> None:
    scene = await stage(models="ab", memory={"a": 40_000}, memory_budget="100KB")
    await ask(scene, "a", "b")
    assert awake(scene) == ["b"]
    scene.models["b"].memory = 30_000
    await ask(scene, "a")
    assert awake(scene) == ["b", "a"]


async def test_what_a_wake_takes_is_measured_where_the_accelerator_tells(autojump_clock, stage, monkeypatch) -> None:
    scene = await stage(models="abc", memory={"c": 50_000}, memory_budget="100KB")
    await ask(scene, "a", "b")
    assert {name: member.memory for name, member in scene.multiplexer.members.items()} == {"a": 0, "b": 0, "c": 50_000}

    taken = {"a": 30_000, "b": 60_000, "c": 50_000}

    async def free(device):
        return 100_000 - sum(taken[name] for name, model in scene.models.items() if model.awake)

    monkeypatch.setattr(memory, "free_memory", free)
    await ask(scene, "a", "b", "a")
    assert {name: member.memory for name, member in scene.multiplexer.members.items()} == taken
    assert awake(scene) == ["b", "a"]
    await ask(scene, "c")
    assert awake(scene) == ["a", "c"]


async def test_others_go_on_while_a_switch_is_made_and_the_policy_decides_who_makes_room(autojump_clock, stage) -> None:
    scene = await stage(
        policy="cost_aware", models="abc", memory={"a": 60_000, "b": 40_000, "c": 40_000}, memory_budget="100KB", max_wait_secs=30
    )
    await ask(scene, "a", "b")
    scene.models["a"].work_takes = scene.models["b"].work_takes = 20.0
    scene.ask("a", 10)
    await trio.sleep(1)
    scene.ask("b", 11)
    scene.ask("c", 12)
    await trio.sleep(15)
    assert awake(scene) == ["a", "b"]  # both are at work, and leaving them would not pay yet
    await trio.sleep(30)
    assert all(isinstance(scene.results[name], list) for name in ("a-10", "b-11", "c-12"))
    assert len(awake(scene)) == 2
    assert "c" in awake(scene)


async def test_what_runs_beside_a_switch_is_not_touched(autojump_clock, stage) -> None:
    scene = await stage(models="abc", memory={"a": 40_000, "b": 40_000, "c": 40_000}, memory_budget="100KB")
    await ask(scene, "a", "b")
    scene.models["b"].work_takes = 100
    scene.ask("b", 7)
    await trio.sleep(1)
    await ask(scene, "c")
    assert awake(scene) == ["b", "c"]
    await trio.sleep(100)
    assert isinstance(scene.results["b-7"], list)
    assert "sleep b" not in scene.log


async def test_nobody_makes_room_before_its_minimum(autojump_clock, stage) -> None:
    scene = await stage(models="abc", memory={"a": 50_000, "b": 50_000, "c": 50_000}, memory_budget="100KB", min_active_secs=30)
    await ask(scene, "a", "b")
    scene.ask("c", 9)
    await trio.sleep(18)
    assert awake(scene) == ["a", "b"]
    await trio.sleep(8)
    assert awake(scene) == ["b", "c"]


async def test_a_pinned_model_makes_room_last_and_only_for_an_order(autojump_clock, stage) -> None:
    scene = await stage(models="abcd", memory=SIZES, memory_budget="100KB")
    await ask(scene, "a", "b", "c")
    await scene.multiplexer.pin("b")
    scene.models["d"].memory = 60_000
    await scene.multiplexer.switch("d")
    assert awake(scene) == ["b", "d"]


async def test_a_wake_that_fails_wakes_everybody_again_who_made_room(autojump_clock, stage) -> None:
    scene = await stage(models="abd", memory=SIZES, memory_budget="100KB")
    await ask(scene, "a", "b")
    scene.models["d"].wake_error = "no room"
    scene.ask("d", 5)
    await trio.sleep(12)
    assert scene.results["d-5"].code == "wake_failed"
    assert awake(scene) == ["a", "b"]


async def test_one_that_cannot_sleep_keeps_its_room_and_the_others_come_back(autojump_clock, stage) -> None:
    scene = await stage(models="abd", memory=SIZES, memory_budget="100KB")
    await ask(scene, "a", "b")
    scene.models["b"].sleep_error = "it hangs"
    scene.ask("d", 5)
    await trio.sleep(12)
    assert "b could not be put to sleep: it hangs" in scene.results["d-5"].message
    assert "wake d" not in scene.log
    assert sorted(awake(scene)) == ["a", "b"]
    assert scene.backends["b"].status().last_error == "b could not be put to sleep: it hangs"


async def test_gateways_are_told_what_waking_costs_where_there_is_room_and_where_not(autojump_clock, stage) -> None:
    scene = await stage(models="abd", memory=SIZES, memory_budget="100KB")
    await ask(scene, "a")
    scene.models["a"].work_takes = 7
    await ask(scene, "d", "a")
    assert scene.multiplexer.wake_cost("b") == pytest.approx(2, abs=0.5)  # beside a
    assert scene.multiplexer.wake_cost("d") == pytest.approx(2.5)  # instead of it


@pytest.mark.parametrize(
    ("text", "size"), [("18GiB", 18 << 30), ("18.5 GiB", int(18.5 * (1 << 30))), ("512 MB", 512_000_000), ("1KB", 1000)]
)
def test_amounts_of_memory(text, size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "18", "GiB", "-1GiB", "0GiB", "18 gib", "1e9GiB", "9" * 40 + "GiB", "٣GiB"])
def test_what_is_no_amount_is_refused(text) -> None:
    with pytest.raises(ValueError, match="write it as 18GiB"):
        parse_size(text)
    with pytest.raises(ValueError, match="or give one or free"):
        check_budget(text)


async def test_the_budget_is_one_an_amount_or_what_is_free(monkeypatch) -> None:
    assert await budget("one") is None
    assert await budget("1KiB") == 1024

    async def free(device):
        return {"cuda:1": 5}.get(device)

    monkeypatch.setattr(memory, "free_memory", free)
    assert await budget("free", "cuda:1") == 5
    assert await budget("free", "auto") > 1 << 20
    assert await budget("free", "cpu") > 1 << 20
