"""The parent's side against a real process that speaks the worker's protocol, faults included."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, Misconfigured, Unavailable
from mesh.messages.inference import Accepted, Delta, Done
from node.backends import torch as torch_backend
from node.backends.torch import TorchBackend, require_worker_packages
from node.liveness import Patience
from node.supervisor import RestartPolicy

HANG_GUARD = 20


async def until(condition) -> None:
    with trio.fail_after(HANG_GUARD):
        while not condition():  # noqa: ASYNC110 - what another process did sets no event
            await trio.sleep(0.005)


@pytest.fixture
async def start(nursery, worker_settings):
    """Start a backend; it is settled when this returns."""

    async def begin(behaviour: str = "well", **options) -> TorchBackend:
        backend = TorchBackend(worker_settings(behaviour, **options))
        with trio.fail_after(HANG_GUARD):
            await nursery.start(backend.run)
        return backend

    return begin


async def test_a_ready_worker_fills_the_entry_and_answers(start, ask) -> None:
    backend = await start(slots=3, context=99)
    assert (backend.entry.state, backend.entry.context_length, backend.entry.weights_digest) == ("ready", 99, "digest")
    assert backend.entry.capabilities.tasks == ["chat", "completion"]
    assert backend.entry.capabilities.hardware_types == ["cpu"]
    assert backend.load.slots == 3
    events = []
    await backend.infer(ask(), events.append)
    assert [type(event) for event in events] == [Accepted, Delta, Delta, Done]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "one two"
    assert backend.load.step == 2
    assert backend.load.decode_rate == 10.0
    status = backend.status()
    assert status.running
    assert psutil.pid_exists(status.pid)
    assert (status.restarts, status.last_error) == (0, None)


async def test_the_last_pulse_is_kept_with_its_time(start, ask) -> None:
    backend = await start("wedged", restarts=RestartPolicy(delay=1000))
    await until(lambda: backend.pulse)
    alive, age = backend.pulse
    assert (alive.step, alive.busy_seconds, alive.stats.total_requests) == (7, 4.5, 3)
    assert 0 <= age < HANG_GUARD
    await until(lambda: backend.pulse[1] > age)
    await backend.infer(ask(), lambda event: None)
    assert (backend.status().engine, backend.status().heard < HANG_GUARD) == (alive, True)
    with pytest.raises(BackendFailed):
        await backend.infer(ask("die"), lambda event: None)
    assert backend.pulse is None, "the pulse is of a worker that is gone"


async def test_the_progress_of_loading_is_told(worker_settings, nursery) -> None:
    told = []
    backend = TorchBackend(worker_settings(), on_loading=lambda model, loading: told.append((model, loading.done, loading.total)))
    await nursery.start(backend.run)
    assert told == [("m", 0, 2), ("m", 2, 2)]


async def test_the_engines_failure_is_raised_as_it_was(start, ask) -> None:
    backend = await start()
    with pytest.raises(BadRequest, match="the prompt is bad") as caught:
        await backend.infer(ask("fail"), lambda event: None)
    assert (caught.value.code, caught.value.param) == ("bad_prompt", "prompt")


async def test_requests_run_side_by_side(start, ask) -> None:
    backend = await start()
    done = []
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(backend.infer, ask(f"prompt {number}"), done.append)
    assert sum(isinstance(event, Done) for event in done) == 50


async def test_cancelling_aborts_in_the_worker_and_hears_nothing_more(start, ask, worker_log) -> None:
    backend = await start()
    events = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.infer, ask("hang"), events.append)
        await until(lambda: len(events) == 2)
        nursery.cancel_scope.cancel()
    await until(lambda: any(line.startswith("abort") for line in worker_log()))
    await backend.infer(ask(), lambda event: None)
    assert len(events) == 2, "a late event was delivered"


async def test_killing_the_worker_fails_its_requests_at_once_and_restarts_it(start, ask) -> None:
    backend = await start(restarts=RestartPolicy(delay=1000))
    states = []
    backend.changed = lambda: states.append(backend.entry.state)
    events = []
    errors = []

    async def hang(number: int) -> None:
        with pytest.raises(BackendFailed) as caught:
            await backend.infer(ask(f"hang {number}"), events.append)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(hang, number)
        await until(lambda: sum(isinstance(event, Delta) for event in events) == 8)
        first = backend.status().pid
        os.kill(first, signal.SIGKILL)
    assert {(error.code, error.retriable) for error in errors} == {("worker_died", True)}
    assert len({id(error) for error in errors}) == 8
    assert states[0] == "loading"
    with pytest.raises(Unavailable) as caught:
        await backend.infer(ask(), events.append)
    assert (caught.value.code, caught.value.retry_after) == ("model_loading", 2)
    # The delay of 1000 s says that this first restart is at once.
    await until(lambda: backend.entry.state == "ready")
    status = backend.status()
    assert status.pid != first
    assert status.restarts == 1
    assert "SIGKILL" in status.last_error
    assert not psutil.pid_exists(first), "the worker was not reaped"
    await backend.infer(ask(), events.append)


@pytest.mark.parametrize("prompt", ["hang", ""])
async def test_a_stopped_worker_is_replaced_with_and_without_work(start, ask, prompt: str) -> None:
    backend = await start("speaks", patience=Patience(least=0.1, silence=0.1), restarts=RestartPolicy(delay=1000))
    first = backend.status().pid
    await until(lambda: backend.pulse)
    async with trio.open_nursery() as nursery:
        if prompt:
            nursery.start_soon(_fails, backend, ask(prompt))
            await until(lambda: backend.load.running)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: backend.status().restarts and backend.entry.state == "ready")
    assert "hangs" in backend.status().last_error
    assert not psutil.pid_exists(first)
    await backend.infer(ask(), lambda event: None)


async def test_a_worker_that_lives_but_does_not_step_is_replaced(start, ask) -> None:
    backend = await start("speaks", patience=Patience(least=0.1))
    await _fails(backend, ask("hang"))
    await until(lambda: backend.entry.state == "ready")
    assert "step 1 has not ended" in backend.status().last_error


async def _fails(backend, request) -> None:
    with pytest.raises(BackendFailed) as caught:
        await backend.infer(request, lambda event: None)
    assert caught.value.code == "worker_died"


async def test_asleep_is_unloaded_and_awake_is_ready(start, ask) -> None:
    backend = await start()
    first = backend.status().pid
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fails, backend, ask("hang"))
        await until(lambda: backend.load.running)
        await backend.sleep()
    assert not psutil.pid_exists(first)
    assert (backend.entry.state, backend.load.state, backend.status().pid) == ("asleep", "asleep", None)
    assert not backend.status().running
    with pytest.raises(Unavailable) as caught:
        await backend.infer(ask(), lambda event: None)
    assert caught.value.code == "model_asleep"
    await backend.sleep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.wake)
        nursery.start_soon(backend.wake)
    assert backend.entry.state == "ready"
    assert backend.entry.wake_seconds > 0
    await backend.infer(ask(), lambda event: None)
    await backend.wake()
    assert (backend.status().restarts, backend.status().last_error) == (0, None)


async def test_a_model_can_start_asleep(nursery, worker_settings, worker_log) -> None:
    backend = TorchBackend(worker_settings())
    await backend.sleep()
    await nursery.start(backend.run)
    assert backend.entry.state == "asleep"
    assert worker_log() == []
    await backend.wake()
    assert len(worker_log()) == 1


@pytest.mark.parametrize("behaviour", ["crash", "refuse"])
async def test_a_wake_that_fails_says_so(nursery, worker_settings, behaviour: str) -> None:
    backend = TorchBackend(worker_settings(behaviour, restarts=RestartPolicy(delay=0.01)))
    await backend.sleep()
    await nursery.start(backend.run)
    with trio.fail_after(HANG_GUARD), pytest.raises(BackendFailed) as caught:
        await backend.wake()
    assert caught.value.code == "wake_failed"
    assert backend.entry.state == "failed"
    if behaviour == "crash":
        await backend.sleep()
        assert backend.entry.state == "asleep"


async def test_the_environment_of_a_model_is_its_own(start, worker_log) -> None:
    await start(environment={"CUDA_VISIBLE_DEVICES": "3"})
    assert worker_log()[0].endswith(" 3")


async def test_nothing_waits_for_a_worker_that_is_gone(start, monkeypatch) -> None:
    monkeypatch.setattr(torch_backend, "_LAST_WORDS", 1000.0)
    backend = await start()
    os.kill(backend.status().pid, signal.SIGKILL)
    await until(lambda: backend.status().restarts == 1 and backend.entry.state == "ready")


async def test_a_request_that_kills_the_worker_is_answered(start, ask) -> None:
    backend = await start()
    with pytest.raises(BackendFailed):
        await backend.infer(ask("die"), lambda event: None)


async def test_a_refusal_is_final_and_is_kept(start, ask, worker_log) -> None:
    backend = await start("refuse")
    status = backend.status()
    assert (status.state, status.refused, status.running) == ("failed", True, False)
    assert status.last_error == "it has no tokenizer; add tokenizer.json"
    with pytest.raises(Unavailable) as caught:
        await backend.infer(ask(), lambda event: None)
    assert caught.value.code == "model_failed"
    assert "tokenizer" not in caught.value.message
    assert len(worker_log()) == 1


async def test_a_worker_that_crashes_while_loading_ends_in_a_named_crash_loop(start, caplog) -> None:
    backend = await start("crash", restarts=RestartPolicy(delay=0.01, longest=0.02))
    status = backend.status()
    assert status.state == "failed"
    assert not status.refused
    assert status.last_error.startswith("crash loop")
    assert "RuntimeError: cannot load" in status.last_error
    assert "m: its worker's last words: RuntimeError: cannot load" in caplog.text
    await until(lambda: backend.status().restarts >= 4)


async def test_a_worker_that_breaks_the_protocol_is_ended(start, worker_log) -> None:
    backend = await start("garbage", restarts=RestartPolicy(limit=0))
    assert backend.status().state == "failed"
    assert "broke the protocol" in backend.status().last_error
    assert not psutil.pid_exists(int(worker_log()[0].split()[1]))


async def test_a_program_that_is_missing_is_named(nursery, worker_settings) -> None:
    backend = TorchBackend(worker_settings(program=["/nonexistent/python"], restarts=RestartPolicy(limit=0)))
    await nursery.start(backend.run)
    assert "could not be started" in backend.status().last_error


async def test_a_loading_model_refuses_requests(worker_settings, nursery, ask, worker_log) -> None:
    backend = TorchBackend(worker_settings("slow"))
    nursery.start_soon(backend.run)
    await until(worker_log)
    assert backend.entry.state == "loading"
    with pytest.raises(Unavailable, match="loading"):
        await backend.infer(ask(), lambda event: None)
    nursery.cancel_scope.cancel()


async def test_the_queue_is_bounded(start, ask) -> None:
    backend = await start(slots=2, max_waiting=3)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(backend.infer, ask(f"hang {number}"), lambda event: None)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Busy) as caught:
            await backend.infer(ask(), lambda event: None)
        assert caught.value.retry_after
        nursery.cancel_scope.cancel()


async def test_a_request_over_the_frame_limit_is_the_clients_fault(start, ask) -> None:
    backend = await start()
    with pytest.raises(BadRequest) as caught:
        await backend.infer(ask("x" * 5_000_000), lambda event: None)
    assert caught.value.status == 413
    await backend.infer(ask(), lambda event: None)


async def test_what_waits_for_a_deaf_worker_is_bounded(start, ask) -> None:
    backend = await start("deaf")
    refused = []

    async def send(number: int) -> None:
        try:
            await backend.infer(ask(f"{number} " + "x" * 2_000_000), lambda event: None)
        except Busy as busy:
            refused.append(busy)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(send, number)
        await until(lambda: refused)
        nursery.cancel_scope.cancel()


async def test_a_receiver_that_raises_ends_its_own_request_only(start, ask, worker_log) -> None:
    backend = await start()

    def broken(event) -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        await backend.infer(ask("hang"), broken)
    await until(lambda: any(line.startswith("abort") for line in worker_log()))
    await backend.infer(ask(), lambda event: None)


async def test_ending_the_backend_leaves_no_process(worker_settings) -> None:
    backend = TorchBackend(worker_settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        pid = backend.status().pid
        nursery.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)
    assert backend.status().pid is None


async def test_the_worker_dies_with_a_parent_that_is_killed(worker_settings, tmp_path) -> None:
    settings = worker_settings()
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(
            f"""
            import trio
            from pathlib import Path
            from node.backends.torch import TorchBackend, TorchSettings

            settings = TorchSettings(model="m", path=Path({str(settings.path)!r}), program={list(settings.program)!r})
            backend = TorchBackend(settings)

            async def main():
                async with trio.open_nursery() as nursery:
                    await nursery.start(backend.run)
                    print(backend.status().pid, flush=True)

            trio.run(main)
            """
        )
    )
    process = await trio.lowlevel.open_process([sys.executable, str(parent)], stdout=subprocess.PIPE)
    try:
        with trio.fail_after(HANG_GUARD):
            worker = int((await process.stdout.receive_some(64)).decode())
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()


def test_missing_packages_are_named_with_the_command(monkeypatch) -> None:
    monkeypatch.setattr(torch_backend, "_PACKAGES", ("msgspec", "no_such_package_of_ours"))
    with pytest.raises(Misconfigured, match=r"no_such_package_of_ours; .*pip install 'infermesh\[worker\]'"):
        require_worker_packages()


def test_the_command_line_is_the_agreed_one(worker_settings) -> None:
    settings = worker_settings(program=["python"], device="cuda:1", dtype="bfloat16", slots=8, context=4096, cache_mib=99)
    assert settings.argv(7) == [
        "python", "--model", str(settings.path), "--device", "cuda:1", "--dtype", "bfloat16", "--socket-fd", "7", "--slots", "8",
        "--context", "4096", "--cache-mib", "99",
    ]  # fmt: skip
