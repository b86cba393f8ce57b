"""Real tools, run for each request."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, Misconfigured, TimedOut, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Said
from mesh.service import paced
from node.backends.cli import WAITING, CliBackend
from node.backends.settings import BackendSettings
from node.backends.unit import Unit

ECHO = "import sys; sys.stdout.write(sys.stdin.read().upper())"


def tool(script: str = ECHO, **settings) -> CliBackend:
    options = {"type": "cli", "command": sys.executable, "args": ["-c", script], "models": ["tool"], "grace": 0.2, **settings}
    return CliBackend(Unit(settings=BackendSettings(**options), id="cli"))


def request(*messages: tuple[str, str], **more) -> InferenceRequest:
    said = [{"role": role, "content": content} for role, content in messages or [("user", "hello")]]
    return InferenceRequest(request_id="r", model="tool", messages=said, **more)


async def answer(backend: CliBackend, asked: InferenceRequest | None = None) -> list:
    events: list = []
    await backend.infer(asked or request(), events.append)
    return events


def text(events: list) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_a_single_message_is_fed_as_it_is_and_the_answer_comes_back():
    events = await answer(tool(), request(("user", "grüße €")))
    assert isinstance(events[0], Accepted)
    assert text(events) == "GRÜSSE €"
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "stop"


async def test_a_conversation_says_who_said_what_and_a_prompt_is_a_prompt():
    asked = request(("system", "be brief"), ("user", "hi"))
    assert text(await answer(tool(), asked)) == "SYSTEM:\nBE BRIEF\n\nUSER:\nHI\n"
    asked = InferenceRequest(request_id="r", model="tool", task="completion", prompt="just this")
    assert text(await answer(tool(), asked)) == "JUST THIS"


async def test_what_it_writes_arrives_while_it_still_writes(tmp_path):
    gate = tmp_path / "gate"
    script = f"import os, time; print('one', flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint('two')"
    first, events = trio.Event(), []

    def emit(event) -> None:
        events.append(event)
        if isinstance(event, Delta):
            first.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tool(script).infer, request(), emit)
        with trio.fail_after(20):
            await first.wait()
        assert text(events).strip() == "one"
        gate.touch()
    assert text(events) == "one\ntwo\n"


async def test_all_of_it_arrives_at_a_slow_reader():
    events: list = []

    async def slowly() -> None:
        await trio.sleep(0.01)

    await tool("print('x' * 200_000)").infer(request(), paced(events.append, slowly))
    assert len(text(events)) == 200_001


@pytest.mark.parametrize(
    ("script", "settings", "kind", "code"),
    [
        ("import sys; print('half'); sys.exit('a secret reason')", {}, BackendFailed, "tool_failed"),
        ("while True: print('x' * 1000)", {"max_output": 5000}, BackendFailed, "reply_too_large"),
        ("import time; time.sleep(1000)", {"request_timeout": 0.3}, TimedOut, "engine_timeout"),
    ],
)
async def test_limits_and_failures(script, settings, kind, code):
    backend = tool(script, **settings)
    with trio.fail_after(20), pytest.raises(kind) as caught:
        await answer(backend)
    assert caught.value.code == code
    assert "secret" not in caught.value.message
    if code == "tool_failed":
        assert "a secret reason" in backend.status().last_error
    assert psutil.Process().children() == []


async def test_a_client_that_goes_away_ends_the_tool_and_what_it_started(tmp_path):
    pid = tmp_path / "pid"
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    script = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        f" open({str(pid)!r}, 'w').write(str(p.pid)); print('on', flush=True); time.sleep(1000)"
    )
    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tool(script).infer, request(), lambda event: started.set() if isinstance(event, Delta) else None)
        with trio.fail_after(20):
            await started.wait()
        nursery.cancel_scope.cancel()
    orphan = int(pid.read_text())
    with trio.fail_after(20):
        while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
            await trio.sleep(0.01)


NODE = """
import sys, trio
from node.backends.cli import CliBackend
from node.backends.settings import BackendSettings
from node.backends.unit import Unit
from mesh.messages.inference import Delta, InferenceRequest

settings = BackendSettings(type="cli", command=sys.executable, args=["-c", sys.argv[1]], models=["tool"], grace=100)
backend = CliBackend(Unit(settings=settings, id="cli"))
asked = InferenceRequest(request_id="r", model="tool", messages=[{"role": "user", "content": "hello"}])
trio.run(backend.infer, asked, lambda event: isinstance(event, Delta) and print(event.text, end="", flush=True))
"""


async def test_a_node_that_is_killed_leaves_no_tool_behind():
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(1000)"
    )
    node = await trio.lowlevel.open_process([sys.executable, "-c", NODE, deaf], stdout=subprocess.PIPE)
    with trio.fail_after(20):
        said = b""
        while not said.endswith(b"\n"):
            said += await node.stdout.receive_some(100)
        assert psutil.pid_exists(int(said))
        node.kill()
        await node.wait()
        while psutil.pid_exists(int(said)):  # noqa: ASYNC110 - what another process did sets no event
            await trio.sleep(0.01)
    await node.stdout.aclose()


async def test_secrets_of_a_tool_are_in_no_complaint():
    backend = tool("import sys; sys.exit('the key is opensesame')", env={"TOOL_API_KEY": "opensesame"})
    with pytest.raises(BackendFailed):
        await answer(backend)
    assert "the key is [hidden]" in backend.status().last_error


async def test_so_many_run_so_many_wait_and_one_more_is_told_that_it_is_busy():
    backend = tool("import time; time.sleep(1000)", max_requests=1)
    async with trio.open_nursery() as nursery:
        for _ in range(1 + WAITING):
            nursery.start_soon(answer, backend)
        with trio.fail_after(20):
            while backend.load.waiting < WAITING:  # noqa: ASYNC110 - it counts
                await trio.sleep(0.01)
        assert backend.load.running == 1
        with pytest.raises(Busy):
            await answer(backend)
        nursery.cancel_scope.cancel()
    assert backend.load.running == backend.load.waiting == 0


async def test_what_a_tool_cannot_honour_is_refused():
    with pytest.raises(BadRequest, match="n"):
        await answer(tool(), request(n=2))
    for begun in ({"prior": [[1]]}, {"said": Said("one", 1)}):
        with pytest.raises(Unavailable, match="cannot go on with an answer"):
            await answer(tool(), request(**begun))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"command": "no-such-tool-anywhere"}, "there is no program 'no-such-tool-anywhere'"),
        ({"command": "/nowhere/tool"}, "there is no program '/nowhere/tool'"),
        ({"command": ""}, "needs a command"),
        ({"command": "'open"}, "close every quote"),
        ({"work_dir": Path("/nowhere")}, "there is no folder /nowhere"),
    ],
)
def test_a_tool_that_is_not_there_is_named_before_anything_starts(settings, said):
    with pytest.raises(Misconfigured) as caught:
        tool(**settings)
    assert said in caught.value.message


async def test_one_that_goes_missing_later_fails_its_requests(tmp_path):
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\ncat\n")
    program.chmod(0o755)
    backend = tool(command=str(program), args=[])
    assert text(await answer(backend)) == "hello"
    program.unlink()
    with pytest.raises(BackendFailed, match="cannot be started"):
        await answer(backend)
