"""Real processes: what an operator, a shell and a parent program see."""

import contextlib
import json
import os
import pty
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.runtime import OPEN_FILES, PARENT_FD, display_name

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, sys, time, trio
from mesh.config import CommonConfig
from mesh.errors import Misconfigured, Unavailable
from mesh.runtime import launch
ADDRESSES = ["/ip4/127.0.0.1/tcp/1/p2p/x"]
"""
EPILOGUE = """
sys.exit(launch("gateway", CommonConfig, serve, description="A test."))
"""
POLITE = """
async def serve(program, config):
    program.ready(addresses=ADDRESSES, http="http://127.0.0.1:1")
    await program.stopping.wait()
    print("finished", file=sys.stderr)
"""
STUBBORN = """
async def serve(program, config):
    program.ready(addresses=ADDRESSES, http=None)
    try:
        await trio.sleep_forever()
    finally:
        print("cancelled", file=sys.stderr)
"""


class Started:
    def __init__(self, folder, body, *argv, **options):
        script = folder / "program.py"
        script.write_text(PRELUDE + body + EPILOGUE)
        self.state = folder / "state"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERMESH_")}
        environ |= {"PYTHONPATH": str(ROOT), **options.pop("environ", {})}
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--state-dir", str(self.state), *argv],
            env=environ,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )

    def ready(self):
        return json.loads(self.process.stdout.readline())

    def end(self):
        """Exit code, the rest of stdout, stderr."""
        out, err = self.process.communicate(timeout=40)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path):
    with contextlib.ExitStack() as stack:

        def begin(body, *argv, **options):
            started = Started(tmp_path, body, *argv, **options)
            stack.callback(started.process.communicate)
            stack.callback(started.process.kill)
            return started

        yield begin


def test_how_many_tasks_there_are_is_told_to_who_asks(start):
    begun = start(POLITE, "--log-level", "info,mesh.runtime=debug")
    begun.ready()
    begun.process.send_signal(signal.SIGTERM)
    _, _, log = begun.end()
    assert re.search(r"debug   mesh.runtime: [1-9]\d* tasks", log)


def test_ready_line_and_live_addresses(start):
    program = start(POLITE)
    ready = program.ready()
    assert ready == {
        "event": "ready",
        "role": "gateway",
        "peer_id": ready["peer_id"],
        "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"],
        "http": "http://127.0.0.1:1",
        "pid": program.process.pid,
    }
    assert json.loads((program.state / "addresses.json").read_text()) == ready
    assert stat.S_IMODE(program.state.stat().st_mode) == 0o700
    program.process.terminate()
    code, out, _ = program.end()
    assert (code, out) == (0, "")
    assert not (program.state / "addresses.json").exists()


def test_the_same_folder_is_the_same_peer(start):
    peers = []
    for _ in range(2):
        program = start(POLITE)
        peers.append(program.ready()["peer_id"])
        program.process.terminate()
        program.end()
    assert peers[0] == peers[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_program_finish(start, number):
    program = start(POLITE)
    program.ready()
    program.process.send_signal(number)
    code, _, err = program.end()
    assert code == 0
    assert "finished" in err


def test_a_second_signal_cancels(start):
    program = start(STUBBORN)
    program.ready()
    program.process.terminate()
    while "stopping: SIGTERM" not in program.process.stderr.readline():
        pass
    program.process.send_signal(signal.SIGINT)
    code, _, err = program.end()
    assert code == 1
    assert "cancelled" in err
    assert "unfinished: a second signal" in err


def test_the_drain_time_out_has_an_end(start):
    program = start(STUBBORN, "--drain-timeout", "0")
    program.ready()
    program.process.terminate()
    code, _, err = program.end()
    assert code == 1
    assert "unfinished: the drain time-out" in err


def test_what_is_deaf_to_cancellation_is_ended(start):
    program = start(
        """
async def serve(program, config):
    program.ready(addresses=[], http=None)
    await trio.to_thread.run_sync(time.sleep, 1000)
"""
    )
    program.ready()
    program.process.terminate()
    while "stopping: SIGTERM" not in program.process.stderr.readline():
        pass
    program.process.terminate()
    assert program.end()[0] == 1


def test_a_signal_before_the_ready_line_stops_at_once_and_well(start):
    program = start(
        """
async def serve(program, config):
    print("loading", file=sys.stderr, flush=True)
    await trio.sleep_forever()
"""
    )
    while "loading" not in program.process.stderr.readline():
        pass
    program.process.terminate()
    assert program.end()[0] == 0


def refused(program):
    code, out, err = program.end()
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


def test_a_bad_flag_exits_2_with_one_line(start):
    assert refused(start(POLITE, "--prot", "1")).startswith("mesh-gateway: unknown flag --prot")


def test_a_refusal_deep_inside_nurseries_exits_2_with_one_line(start):
    body = """
async def serve(program, config):
    async def fail():
        raise Misconfigured("the port 1 is taken;\\n choose another --port")
    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        outer.start_soon(trio.sleep_forever)
        inner.start_soon(fail)
"""
    assert refused(start(body)) == "mesh-gateway: the port 1 is taken; choose another --port\n"


def test_a_crash_exits_1_with_its_traceback(start):
    body = """
async def serve(program, config):
    raise Unavailable("no way")
"""
    code, _, err = start(body).end()
    assert code == 1
    assert "mesh-gateway crashed" in err
    assert "Traceback" in err
    assert "no way" in err


def test_one_process_per_state_folder(start):
    first = start(POLITE)
    first.ready()
    error = refused(start(POLITE))
    assert f"in use by process {first.process.pid}" in error
    assert "--state-dir" in error
    first.process.kill()
    first.process.wait()
    again = start(POLITE)
    assert again.ready()["event"] == "ready"


def test_a_state_folder_that_is_a_file(start, tmp_path):
    (tmp_path / "state").write_text("")
    assert "cannot use the state folder" in refused(start(POLITE))


def test_a_reader_of_the_ready_line_may_go_away(start):
    reading, writing = os.pipe()
    os.close(reading)
    program = start(POLITE, stdout=writing)
    os.close(writing)
    while "ready: " not in (line := program.process.stderr.readline()):
        assert line
    program.process.terminate()
    code, _, err = program.end()
    assert code == 0
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_terminal_gets_a_sentence(start):
    controller, terminal = pty.openpty()
    program = start(POLITE, stdout=terminal)
    os.close(terminal)
    line = os.read(controller, 1000).decode()
    program.process.terminate()
    program.end()
    os.close(controller)
    assert line.startswith("mesh-gateway is ready at http://127.0.0.1:1")


def test_the_parents_end_ends_it_however_it_died(start):
    reading, writing = os.pipe()
    program = start(STUBBORN, environ={PARENT_FD: str(reading)}, pass_fds=(reading,))
    os.close(reading)
    program.ready()
    assert program.process.poll() is None
    os.close(writing)
    code, _, err = program.end()
    assert code == 1
    assert "the end of the parent process" in err


def test_the_parents_pipe_is_not_passed_on(start):
    reading, writing = os.pipe()
    body = """
async def serve(program, config):
    program.ready(addresses=[os.environ.get("INFERMESH_PARENT_FD", "gone")], http=None)
"""
    program = start(body, environ={PARENT_FD: str(reading)}, pass_fds=(reading,))
    os.close(reading)
    assert program.ready()["addresses"] == ["gone"]
    os.close(writing)


@pytest.mark.parametrize("value", ["x", "9999"])
def test_a_parents_pipe_that_is_none(start, value):
    assert "is not an open pipe" in refused(start(POLITE, environ={PARENT_FD: value}))


def test_a_foreign_package_of_our_name_is_named(start, tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("")
    # The script's folder comes first in the path, as a colliding distribution's would.
    error = refused(start(POLITE))
    assert "the package 'node' is another project's" in error
    assert "in an environment of its own" in error


def test_rooms_from_two_folders_are_refused(start, tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text('DISTRIBUTION = "infermesh"')
    assert f"the package 'node' comes from {tmp_path}" in refused(start(POLITE))


def test_display_name():
    assert display_name("mine", "12D3KooWabcdefgh") == "mine"
    assert display_name("", "12D3KooWabcdefgh").endswith("-abcdefgh")


LIMITED = """
import resource
async def serve(program, config):
    print(*resource.getrlimit(resource.RLIMIT_NOFILE), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [((64, 4096), "4096 4096"), ((4096, 4096), "4096 4096"), ((64, OPEN_FILES + 1), f"{OPEN_FILES} {OPEN_FILES + 1}")],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(tmp_path, before, after):
    if before[1] > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        pytest.skip("this process may open fewer files")
    program = Started(tmp_path, LIMITED, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before))
    _, errors = program.process.communicate(timeout=20)
    assert after in errors
