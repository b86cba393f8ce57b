"""Real families of processes, whose node or guard is really killed."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import trio

from node.process import ChildProcess

HANG_GUARD = 20
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which children inherit
sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
one = subprocess.Popen(sleep)
if os.fork() == 0:  # an orphan in a session of its own
    os.setsid()
    print("family", one.pid, subprocess.Popen(sleep).pid, flush=True)
    os._exit(0)
time.sleep(100)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_guard(process: psutil.Process) -> bool:
    try:
        return any(argument.endswith("guard.py") for argument in process.cmdline())
    except psutil.Error:
        return False


async def until(condition) -> None:
    with trio.fail_after(HANG_GUARD):
        while not condition():  # noqa: ASYNC110 - what another process did sets no event
            await trio.sleep(0.01)


async def family(child: ChildProcess) -> list[int]:
    """The pids of the child, of one of its group, and of one outside of it."""
    await until(lambda: child.lines)
    return [child.pid, *(int(pid) for pid in child.lines[0].split()[1:])]


@pytest.fixture
def stubborn(tmp_path) -> list[str]:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    return [sys.executable, str(script)]


async def test_a_node_that_is_killed_leaves_nothing_behind(stubborn, tmp_path) -> None:
    node = tmp_path / "parent.py"
    node.write_text(
        textwrap.dedent(
            f"""
            import trio
            from node.process import ChildProcess

            child = ChildProcess({stubborn!r}, grace=100, on_line=lambda line: print(child.pid, line, flush=True))
            trio.run(child.run)
            """
        )
    )
    process = await trio.lowlevel.open_process([sys.executable, str(node)], stdout=subprocess.PIPE)
    with trio.fail_after(HANG_GUARD):
        said = b""
        while not said.endswith(b"\n"):
            said += await process.stdout.receive_some(100)
        leader, _, *others = said.split()
        pids = [int(pid) for pid in (leader, *others)]
        assert all(alive(pid) for pid in pids)
        process.kill()
        await process.wait()
    await until(lambda: not any(alive(pid) for pid in pids))
    await process.stdout.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans can be found on Linux only")
async def test_ending_a_child_finds_its_orphans_in_other_sessions(stubborn) -> None:
    child = ChildProcess(stubborn, grace=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        pids = await family(child)
        nursery.cancel_scope.cancel()
    assert child.returncode == -signal.SIGKILL
    assert not any(alive(pid) for pid in pids)


async def test_a_guard_that_is_killed_takes_the_child_along(stubborn) -> None:
    child = ChildProcess(stubborn)
    with trio.fail_after(HANG_GUARD):
        async with trio.open_nursery() as nursery:
            await nursery.start(child.run)
            pids = await family(child)
            os.kill(psutil.Process(child.pid).ppid(), signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    await until(lambda: not any(alive(pid) for pid in pids[:2]))
    os.kill(pids[2], signal.SIGKILL)  # beyond everybody's reach, as it left the group


async def test_a_guard_that_is_stopped_is_not_waited_for_long(stubborn, monkeypatch) -> None:
    monkeypatch.setattr("node.process._GUARD_LIMIT", 0.2)
    child = ChildProcess(stubborn, grace=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        pids = await family(child)
        os.kill(psutil.Process(child.pid).ppid(), signal.SIGSTOP)
        nursery.cancel_scope.cancel()
    await until(lambda: not any(alive(pid) for pid in pids[:2]))
    os.kill(pids[2], signal.SIGKILL)


async def test_a_guard_that_gets_sigterm_ends_the_child(stubborn) -> None:
    child = ChildProcess(stubborn)
    with trio.fail_after(HANG_GUARD):
        async with trio.open_nursery() as nursery:
            await nursery.start(child.run)
            await family(child)
            os.kill(psutil.Process(child.pid).ppid(), signal.SIGTERM)
    assert child.returncode == -signal.SIGKILL


async def test_a_child_that_has_much_to_say_at_its_end_can_say_it() -> None:
    script = """if True:
        import signal, sys, time
        def end(*_):
            for line in range(50_000):
                print("bye", line)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("up", flush=True)
        time.sleep(100)
    """
    child = ChildProcess([sys.executable, "-c", script], grace=HANG_GUARD)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        await until(lambda: child.lines)
        nursery.cancel_scope.cancel()
    assert child.returncode == 0
    assert len(child.lines) > 1


async def test_one_that_is_called_off_before_it_began_leaves_nothing() -> None:
    much = {"MUCH": "x" * 100_000, "MORE": "y" * 100_000}  # more than a pipe takes at once
    for moment in (0.0, 0.001, 0.01, 0.02, 0.03):
        child = ChildProcess(["sleep", "100"], environment={**os.environ, **much}, grace=HANG_GUARD)
        with trio.fail_after(HANG_GUARD), trio.move_on_after(moment):
            await child.run()
        assert child.pid is None or not alive(child.pid)
    assert not [process for process in psutil.Process().children(recursive=True) if alive(process.pid) and is_guard(process)]


async def test_a_stopped_child_is_ended_too() -> None:
    child = ChildProcess([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(100)"], grace=100)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        await until(lambda: child.lines)
        os.kill(child.pid, signal.SIGSTOP)
        child.hurry()
        nursery.cancel_scope.cancel()
    assert child.returncode == -signal.SIGKILL


async def test_signals_and_descriptors_are_as_a_program_expects_them() -> None:
    script = """if True:
        import os, signal
        names = ("SIGPIPE", "SIGTERM", "SIGHUP", "SIGCHLD")
        print(*(signal.getsignal(getattr(signal, name)) == signal.SIG_DFL for name in names), sorted(os.listdir("/dev/fd"))[:4])
    """
    # Python itself ignores SIGPIPE, so a shell has to look.
    child = ChildProcess(["sh", "-c", "ls /proc/self/fd | wc -w; trap; kill -PIPE $$"])
    await child.run()
    assert child.returncode == -signal.SIGPIPE
    assert child.lines[0] == "4", "the listing itself is the fourth"
    # Without `site`: measuring coverage would set a handler of its own there.
    child = ChildProcess([sys.executable, "-S", "-c", script])
    await child.run()
    assert child.lines[0].startswith("False True True True")


async def test_a_missing_directory_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await ChildProcess(["true"], directory=tmp_path / "nowhere").run()
    assert caught.value.filename == str(tmp_path / "nowhere")
    with pytest.raises(PermissionError):
        await ChildProcess([str(tmp_path)]).run()


async def test_a_program_is_found_on_the_childs_own_path(tmp_path) -> None:
    program = tmp_path / "greet"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    child = ChildProcess(["greet"], environment={"PATH": f"{tmp_path}:/bin:/usr/bin"})
    await child.run()
    assert list(child.lines) == ["hello"]
