import json
import sys
from pathlib import Path

import pytest
import trio

from mesh.errors import BackendFailed, Misconfigured, NotFound
from mesh.messages.inference import Done, InferenceRequest
from node import backends as module
from node.backends.manager import MAX_BACKENDS, BackendCapabilities, BackendManager
from node.backends.mock import MockBackend, MockSettings

HANG_GUARD = 20
EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "backends.py"


class Service:
    """Answers after a while, or fails."""

    def __init__(self, *, seconds: float = 0, fails: bool = False, check=None) -> None:
        self.seconds = seconds
        self.fails = fails
        if check is not None:
            self.check = check

    async def infer(self, request, emit) -> None:
        await trio.sleep(self.seconds)
        if self.fails:
            raise BackendFailed("it broke")


def request(**fields) -> InferenceRequest:
    return InferenceRequest(**{"request_id": "r", "model": "m", "prompt": "hello", "task": "completion", **fields})


@pytest.fixture
def manager() -> BackendManager:
    return BackendManager()


def add(manager: BackendManager, name: str, kind="API", **options):
    service = options.pop("service", None) or Service()
    return manager.register_backend(name, kind, name.title(), service, **options)


def test_a_backend_is_chosen_by_task_and_model(manager) -> None:
    words = add(manager, "words", models=["m"])
    numbers = add(manager, "numbers", capabilities=BackendCapabilities(supported_tasks=["embedding"]))
    assert manager.select_backend_for_task("chat") is words
    assert manager.select_backend_for_task("text-generation", "m") is words
    assert manager.select_backend_for_task("text-embedding", "anything") is numbers
    assert manager.select_backend_for_task("chat", "other") is None
    assert manager.select_backend_for_task("rerank") is None


def test_preferred_types_come_in_their_order_and_others_after_them(manager) -> None:
    cloud, tool = add(manager, "cloud", "API"), add(manager, "tool", "CLI")
    assert manager.select_backend_for_task("chat", preferred_types=["GPU", "CLI", "API"]) is tool
    assert manager.select_backend_for_task("chat", preferred_types=["API"]) is cloud
    assert manager.select_backend_for_task("chat", preferred_types=["GPU"]) in (cloud, tool)


def test_turns_are_taken_for_each_model_alone(manager) -> None:
    for name in ("a", "b"):
        add(manager, name)
    chosen = [manager.select_backend_for_task("chat", model).id for _ in range(4) for model in ("one", "two")]
    assert chosen[0::2] == chosen[1::2] == ["a", "b", "a", "b"]


async def test_least_loaded_takes_the_smallest_queue(manager, nursery) -> None:
    manager.strategy = "least_loaded"
    busy, idle = add(manager, "busy", service=Service(seconds=1000)), add(manager, "idle")
    nursery.start_soon(busy.infer, request(), lambda event: None)
    await trio.testing.wait_all_tasks_blocked()
    assert [manager.select_backend_for_task("chat") for _ in range(3)] == [idle] * 3
    nursery.cancel_scope.cancel()


async def test_best_performance_tries_everybody_and_then_takes_the_fastest(manager, autojump_clock) -> None:
    manager.strategy = "best_performance"
    slow, fast = add(manager, "slow", service=Service(seconds=2)), add(manager, "fast", service=Service(seconds=1))
    tried = set()
    for _ in range(2):
        chosen = manager.select_backend_for_task("chat")
        tried.add(chosen)
        await chosen.infer(request(), lambda event: None)
    assert tried == {slow, fast}
    assert [manager.select_backend_for_task("chat") for _ in range(3)] == [fast] * 3


async def test_one_that_fails_is_asked_only_when_nobody_else_is_there(manager) -> None:
    good, bad = add(manager, "good"), add(manager, "bad", service=Service(fails=True))
    for _ in range(3):
        with pytest.raises(BackendFailed):
            await bad.infer(request(), lambda event: None)
    assert bad.status == "degraded"
    assert {manager.select_backend_for_task("chat") for _ in range(4)} == {good}
    manager.unregister_backend("good")
    assert manager.select_backend_for_task("chat") is bad


async def test_a_check_takes_out_who_does_not_answer(manager, autojump_clock) -> None:
    async def broken() -> bool:
        raise OSError("no")

    async def hanging() -> bool:
        await trio.sleep_forever()
        return True

    answer = True

    async def changing() -> bool:
        return answer

    checked = [
        add(manager, name, service=Service(check=check)) for name, check in zip("abc", (broken, hanging, changing), strict=True)
    ]
    unchecked = add(manager, "d")
    assert {each.status for each in (*checked, unchecked)} == {"healthy"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run, 60)
        await trio.sleep(30)
        assert [each.status for each in (*checked, unchecked)] == ["offline", "offline", "healthy", "healthy"]
        answer = False
        await trio.sleep(60)
        assert checked[2].status == "offline"
        answer = True
        await trio.sleep(60)
        assert checked[2].status == "healthy"
        nursery.cancel_scope.cancel()
    assert manager.select_backend_for_task("chat") in (checked[2], unchecked)


async def test_one_of_ours_tells_of_itself(manager, nursery) -> None:
    mock = MockBackend("model-a", MockSettings(slots=3))
    backend = manager.register_backend("mine", "GPU", "Mine", mock)
    await nursery.start(mock.run)
    assert manager.select_backend_for_task("chat", "model-b") is None
    assert manager.select_backend_for_task("chat", "model-a") is backend
    events = []
    await backend.infer(request(model="model-a"), events.append)
    assert isinstance(events[-1], Done)
    report = manager.get_backend_status_report()
    assert (report["total_backends"], report["backends_by_type"], report["supported_tasks"]) == (
        1,
        {"GPU": 1},
        ["text-embedding", "text-generation"],
    )
    (described,) = report["backends"]
    assert (described["id"], described["name"], described["status"], described["models"]) == (
        "mine",
        "Mine",
        "healthy",
        ["model-a"],
    )
    metrics = described["metrics"]
    assert (metrics["requests"], metrics["successful"], metrics["success_rate"], metrics["models_loaded"]) == (1, 1, 1.0, 1)
    assert metrics["avg_latency_ms"] > 0
    nursery.cancel_scope.cancel()


def test_registering_again_replaces_and_what_is_wrong_is_refused(manager) -> None:
    add(manager, "a")
    second = add(manager, "a")
    assert list(manager.backends.values()) == [second]
    with pytest.raises(Misconfigured, match="'TPU' is not a backend type; give one of GPU, API"):
        add(manager, "b", "TPU")
    manager.unregister_backend("a")
    with pytest.raises(NotFound, match="'a'"):
        manager.unregister_backend("a")


def test_backends_are_bounded(manager) -> None:
    for number in range(MAX_BACKENDS):
        add(manager, str(number))
    with pytest.raises(Misconfigured, match="unregister_backend"):
        add(manager, "more")
    add(manager, "0")


async def test_the_functions_are_one_manager_of_the_process() -> None:
    backend = module.register_backend("here", "API", "Here", Service(), BackendCapabilities(), "http://127.0.0.1:1", models=["m"])
    try:
        assert module.select_backend_for_task("chat", "m", ["API"]) is backend
        await backend.infer(request(), lambda event: None)
        report = module.get_backend_status_report()
        assert (report["total_requests"], report["backends"][0]["endpoint"]) == (1, "http://127.0.0.1:1")
    finally:
        module.unregister_backend("here")


async def test_the_documented_example_runs() -> None:
    with trio.fail_after(HANG_GUARD):
        done = await trio.run_process([sys.executable, str(EXAMPLE)], capture_stdout=True)
    said, _, report = done.stdout.decode().partition("\n")
    assert said == "WHO ARE YOU "
    assert json.loads(report)["total_successful"] == 1
