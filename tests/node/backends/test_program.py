"""Real programs, supervised."""

import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.messages.inference import Delta, Done, InferenceRequest
from mesh.openai.remote.client import RemoteClient
from node.backends.program import ProgramBackend
from node.backends.servers import OpenAIServer
from node.backends.settings import BackendSettings
from node.backends.unit import Unit
from node.http import free_pair
from node.supervisor import RestartPolicy

PROGRAM = str(Path(__file__).parent / "openai_program.py")


def made(*how: str, restarts: int = 100, **settings) -> ProgramBackend:
    port = free_pair("127.0.0.1")
    words = [PROGRAM, "{port}", *how]
    options = {"type": "command", "command": sys.executable, "args": words, "grace": 1.0, **settings}
    unit = Unit(settings=BackendSettings(**options), id="it", port=port, restarts=RestartPolicy(delay=0.1, limit=restarts))
    return ProgramBackend(unit, OpenAIServer(f"http://127.0.0.1:{port}", RemoteClient()))


async def say(backend: ProgramBackend, model: str = "far") -> str:
    events: list = []
    await backend.infer(
        InferenceRequest(request_id="r", model=model, messages=[{"role": "user", "content": "hi"}]), events.append
    )
    assert isinstance(events[-1], Done)
    return "".join(event.text for event in events if isinstance(event, Delta))


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what changes is outside
            await trio.sleep(0.02)


async def test_it_is_started_found_ready_asked_and_gone_at_the_end(nursery):
    backend = made("late", env={"SAYS": "hello"})
    assert backend.entries() == []
    assert backend.entry.id == "it"
    async with trio.open_nursery() as life:
        await life.start(backend.run)
        (entry,) = backend.entries()
        assert (entry.id, entry.state, entry.context_length, entry.backend) == ("far", "ready", 64, "command")
        assert await say(backend) == "hello far"
        assert backend.loads()["far"].step > 0
        pid = backend.status().pid
        assert pid is not None
        life.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)


async def test_one_that_is_killed_is_started_again(nursery):
    backend = made()
    changes: list[str] = []
    backend.changed = lambda: changes.append(backend.state)
    await nursery.start(backend.run)
    first = backend.status().pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: backend.state == "ready" and backend.status().pid != first)
    assert backend.status().restarts == 1
    assert "SIGKILL" in backend.status().last_error
    assert changes[0] == "ready"
    assert "loading" in changes
    assert await say(backend) == f"pid {backend.status().pid} far"


async def test_one_that_answers_nothing_any_more_is_replaced(nursery):
    backend = made("deaf", progress_timeout=0.6, grace=0.1)
    await nursery.start(backend.run)
    first = backend.status().pid
    os.kill(first, signal.SIGSTOP)
    await until(lambda: backend.state == "ready" and backend.status().pid != first)
    assert backend.status().last_error == "hung: alive, but it answered nothing for 0.6 s"
    assert not psutil.pid_exists(first)


async def test_one_that_does_one_thing_at_a_time_is_not_hung_while_it_answers(nursery):
    backend = made("single", progress_timeout=1.5, env={"SAYS": "slowly"})
    await nursery.start(backend.run)
    pid = backend.status().pid
    assert await say(backend) == "slowly far"
    assert (backend.state, backend.status().pid) == ("ready", pid)


async def test_one_that_answers_is_asked_for_nothing_else_meanwhile(nursery):
    backend = made("touchy", progress_timeout=1.0, env={"SAYS": "undisturbed"})
    await nursery.start(backend.run)
    assert await say(backend) == "undisturbed far"


async def test_one_whose_requests_get_no_answer_is_replaced_although_it_lists_its_models(nursery):
    backend = made("stuck", progress_timeout=0.6)
    await nursery.start(backend.run)
    assert await say(backend)
    first = backend.status().pid
    with pytest.raises(Exception, match="the service"), trio.fail_after(20):
        await say(backend)
    await until(lambda: backend.state == "ready" and backend.status().pid != first)
    assert backend.status().last_error == "hung: no progress for 0.6 s with 1 requests under way"


async def test_one_that_crashes_again_and_again_is_a_crash_loop_with_its_cause(nursery):
    backend = made("crash")
    await nursery.start(backend.run)
    assert backend.state == "failed"
    assert backend.status().last_error.startswith("crash loop, 3 deaths in a row")
    assert "RuntimeError: this one crashes" in backend.status().last_error
    with pytest.raises(Unavailable) as caught:
        await say(backend)
    assert caught.value.code == "model_failed"


@pytest.mark.parametrize(("how", "said"), [("unlisted", "lists no model yet"), ("mute", "not ready within start_timeout, 2 s")])
async def test_one_that_never_gets_ready_is_ended(nursery, how, said):
    backend = made(how, start_timeout=2.0, grace=0.2, restarts=0)
    await nursery.start(backend.run)
    assert (backend.state, backend.status().pid) == ("failed", None)
    assert said in backend.status().last_error


async def test_a_port_that_somebody_has_is_not_taken_for_its_own():
    backend = made()
    with socket.create_server(("127.0.0.1", backend._unit.port)), pytest.raises(Misconfigured, match="cannot be had"):
        await backend.run()


async def test_names_of_the_file_stand_for_what_the_server_calls_them(nursery):
    backend = made(models=["near"], upstream_model="deep/inside", aliases=["n"], env={"SAYS": "x"})
    await nursery.start(backend.run)
    assert [entry.id for entry in backend.entries()] == ["near"]
    assert await say(backend, "n") == "x deep/inside"


async def test_the_token_that_shows_it_ready_is_not_asked_for_again(nursery):
    backend = made("stuck", models=["near"], upstream_model="deep", progress_timeout=0.6)
    await nursery.start(backend.run)
    pid = backend.status().pid
    await trio.sleep(1.5)
    assert (backend.state, backend.status().pid) == ("ready", pid)


async def test_a_named_model_that_it_does_not_list_is_the_reason_that_it_is_not_ready(nursery):
    backend = made(models=["other"], start_timeout=2.0, restarts=0)
    await nursery.start(backend.run)
    assert "it lists far, and not other" in backend.status().last_error


async def test_a_command_sleeps_by_ending_and_wakes_by_starting(nursery):
    backend = made()
    await nursery.start(backend.run)
    pid = backend.status().pid
    for _ in range(2):
        await backend.sleep()
    assert (backend.state, backend.status().pid) == ("asleep", None)
    assert not psutil.pid_exists(pid)
    with pytest.raises(Unavailable) as caught:
        await say(backend)
    assert caught.value.code == "model_asleep"
    for _ in range(2):
        await backend.wake()
    assert await say(backend) == f"pid {backend.status().pid} far"
    assert backend.status().restarts == 0


async def test_a_wake_that_fails_says_so_and_leaves_nothing_running(nursery):
    backend = made(start_timeout=4.0)
    await nursery.start(backend.run)
    await backend.sleep()
    backend._argv = [sys.executable, PROGRAM, str(backend._unit.port), "unlisted"]
    with pytest.raises(Unavailable) as caught:
        await backend.wake()
    assert caught.value.code == "wake_failed"
    assert (backend.state, backend.status().pid) == ("asleep", None)


async def test_vllm_sleeps_by_itself_and_keeps_running(nursery):
    backend = made(type="vllm", command=f"{sys.executable} {PROGRAM}", model="m", args=[])
    backend._argv = [sys.executable, PROGRAM, str(backend._unit.port), "sleepy"]
    await nursery.start(backend.run)
    pid = backend.status().pid
    await backend.sleep()
    assert (backend.state, backend.status().pid) == ("asleep", pid)
    await backend.wake()
    assert await say(backend) == f"pid {pid} far"
    await backend.sleep()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: backend.status().pid not in (None, pid) and backend._supervisor.state == "ready")
    assert backend.state == "asleep"
    assert "asleep" in backend._child.lines


async def test_vllm_can_be_told_to_sleep_deeper(nursery):
    backend = made(type="vllm", command=f"{sys.executable} {PROGRAM}", model="m", args=[], sleep_level=2)
    backend._argv = [sys.executable, PROGRAM, str(backend._unit.port), "sleepy"]
    await nursery.start(backend.run)
    await backend.sleep()
    assert (backend.state, backend.status().pid) == ("asleep", None)
    await backend.wake()
    assert "far" in await say(backend)
