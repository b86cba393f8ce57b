"""Real processes: what is tested is what the kernel does."""

import os
import signal
import sys

import psutil
import pytest
import trio

from node.process import KEPT_LINES, LINE_LIMIT, ChildProcess, oom_kills

HANG_GUARD = 20


def python(script: str, **options) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", script], **options)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_dead(pid: int) -> None:
    with trio.fail_after(HANG_GUARD):
        while alive(pid):  # noqa: ASYNC110 - what another process did sets no event
            await trio.sleep(0.01)


async def until_line(child: ChildProcess, start: str) -> str:
    with trio.fail_after(HANG_GUARD):
        while True:
            for line in child.lines:
                if line.startswith(start):
                    return line
            await trio.sleep(0.01)


async def test_both_outputs_are_kept_and_the_exit_is_reported() -> None:
    heard: list[str] = []
    child = python(
        "import sys; print('out', flush=True); print('RuntimeError: err', file=sys.stderr); sys.exit(3)", on_line=heard.append
    )
    await child.run()
    assert list(child.lines) == heard == ["out", "RuntimeError: err"]
    assert child.returncode == 3
    assert child.cause == "exited with code 3: RuntimeError: err"


async def test_a_child_that_is_fed_finds_it_on_stdin_and_its_output_goes_where_it_is_wanted() -> None:
    said = bytearray()

    async def take(data: bytes) -> None:
        said.extend(data)
        await trio.sleep(0.001)

    script = "import sys; data = sys.stdin.buffer.read(); print('note', file=sys.stderr); sys.stdout.buffer.write(data[::-1])"
    child = python(script, feed=b"\0" + b"x" * 300_000, on_output=take)
    await child.run()
    assert said == b"x" * 300_000 + b"\0"
    assert (list(child.lines), child.returncode) == (["note"], 0)


async def test_a_child_that_does_not_read_is_none_the_worse_for_it() -> None:
    before = psutil.Process().num_fds()
    child = python("print('done')", feed=b"x" * 300_000)
    with trio.fail_after(HANG_GUARD):
        await child.run()
    assert (list(child.lines), child.returncode) == (["done"], 0)
    assert psutil.Process().num_fds() == before


async def test_a_child_that_nobody_listens_to_any_more_can_still_end() -> None:
    started = trio.Event()

    async def stuck(_data: bytes) -> None:
        started.set()
        await trio.sleep_forever()

    child = python("import os\nwhile True: os.write(1, b'x' * 65536)", feed=b"", on_output=stuck, grace=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        with trio.fail_after(HANG_GUARD):
            await started.wait()
        nursery.cancel_scope.cancel()
    assert child.returncode in (-signal.SIGTERM, -signal.SIGPIPE)


async def test_the_kept_output_is_bounded_in_lines_and_in_length() -> None:
    child = python("for i in range(500): print(i)\nprint('y' * 100_000)\nprint('z' * 100_000, end='')")
    await child.run()
    assert len(child.lines) == KEPT_LINES
    assert max(len(line) for line in child.lines) <= LINE_LIMIT
    assert child.lines[-1] == "z" * LINE_LIMIT


async def test_output_that_is_not_text_does_no_harm() -> None:
    child = python("import os; os.write(1, b'\\xff\\xfe ok\\n')")
    await child.run()
    assert list(child.lines) == ["\ufffd\ufffd ok"]


async def test_a_missing_program_raises() -> None:
    with pytest.raises(FileNotFoundError):
        await ChildProcess(["/nonexistent/program"]).run()


async def test_cancelling_ends_the_whole_group_also_when_it_ignores_sigterm() -> None:
    script = """if True:
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which children inherit
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])
        print('grandchild', child.pid, flush=True)
        time.sleep(100)
    """
    child = python(script, grace=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        grandchild = int((await until_line(child, "grandchild")).split()[1])
        nursery.cancel_scope.cancel()
    assert child.returncode == -signal.SIGKILL
    await until_dead(grandchild)
    assert not psutil.pid_exists(child.pid), "the child was not reaped"


async def test_a_child_may_end_by_itself_on_sigterm() -> None:
    script = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(100)"
    child = python(script, grace=HANG_GUARD)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        await until_line(child, "up")
        nursery.cancel_scope.cancel()
    assert child.returncode == 7


async def test_what_the_leader_leaves_behind_is_killed() -> None:
    script = """if True:
        import subprocess, sys
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])
        print('grandchild', child.pid, flush=True)
    """
    child = python(script)
    with trio.fail_after(HANG_GUARD):
        await child.run()
    assert child.returncode == 0
    await until_dead(int(child.lines[0].split()[1]))


async def test_a_child_is_the_leader_of_its_own_session() -> None:
    child = python("import os; print(os.getsid(0) == os.getpid())")
    await child.run()
    assert list(child.lines) == ["True"]
    assert os.getsid(0) != child.pid


async def test_environment_and_directory_are_given(tmp_path) -> None:
    child = python("import os; print(os.environ['COLOUR'], os.getcwd())", environment={"COLOUR": "blue"}, directory=tmp_path)
    await child.run()
    assert list(child.lines) == [f"blue {tmp_path}"]


async def test_secrets_are_kept_nowhere() -> None:
    heard: list[str] = []
    child = python(
        "import os; print('with', os.environ['SOME_API_KEY'])", environment={"SOME_API_KEY": "swordfish"}, on_line=heard.append
    )
    await child.run()
    assert list(child.lines) == heard == ["with [hidden]"]


def test_the_kernels_count_of_memory_kills_is_a_number() -> None:
    assert oom_kills() >= 0
