"""Real processes that a node is supposed to have left behind."""

import os
import signal
import subprocess
import sys

import msgspec
import psutil
import pytest

from node import leftovers
from node.leftovers import FILE, Leftovers


@pytest.fixture
def start():
    """Start the leader of a session; its process."""
    started = []

    def begin(script: str = "", *, new_session: bool = True) -> subprocess.Popen[str]:
        argv = [
            sys.executable,
            "-S",
            "-c",
            f"import os, signal, time\nsay = lambda: os.write(1, b'%d\\n' % os.getpid())\n{script}\nsay()\ntime.sleep(100)",
        ]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=new_session))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def pid_of(process) -> int:
    return int(process.stdout.readline())


def dead(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_what_the_last_node_noted_is_ended(tmp_path, start) -> None:
    polite, stubborn = start(), start("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    pids = [pid_of(polite), pid_of(stubborn)]
    Leftovers(tmp_path / FILE).note(pids)
    assert sorted(await Leftovers(tmp_path / FILE).end()) == sorted(pids)
    assert (polite.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


async def test_the_session_of_a_leader_that_is_gone_is_ended(tmp_path, start) -> None:
    leader = start("if os.fork(): say(); time.sleep(100)")
    first, second = pid_of(leader), pid_of(leader)
    member = first + second - leader.pid
    Leftovers(tmp_path / FILE).note([leader.pid])
    leader.kill()
    leader.wait()
    assert not dead(member)
    assert await Leftovers(tmp_path / FILE).end() == [member]
    assert dead(member)


@pytest.mark.parametrize("change", [{"started": 1.0}, {"machine": "another"}])
async def test_a_number_that_is_somebody_elses_by_now_is_left_alone(tmp_path, start, change) -> None:
    pid = pid_of(start())
    Leftovers(tmp_path / FILE).note([pid])
    written = msgspec.json.decode((tmp_path / FILE).read_bytes())
    written["machine"] = change.get("machine", written["machine"])
    written["children"][0]["started"] = change.get("started", written["children"][0]["started"])
    (tmp_path / FILE).write_bytes(msgspec.json.encode(written))
    assert await Leftovers(tmp_path / FILE).end() == []
    assert not dead(pid)


async def test_a_process_in_a_session_of_others_is_left_alone(tmp_path, start) -> None:
    pid = pid_of(start(new_session=False))
    Leftovers(tmp_path / FILE).note([pid])
    assert await Leftovers(tmp_path / FILE).end() == []


async def test_an_orderly_end_leaves_nothing_to_look_for(tmp_path, start) -> None:
    pid = pid_of(start())
    noted = Leftovers(tmp_path / FILE)
    noted.note([pid])
    noted.note([])
    assert await Leftovers(tmp_path / FILE).end() == []
    assert not dead(pid)


def test_only_what_changed_is_written(tmp_path) -> None:
    noted = Leftovers(tmp_path / FILE)
    noted.note([os.getpid()])
    (tmp_path / FILE).unlink()
    noted.note([os.getpid()])
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"machine": 1, "children": []}', b"\xff"])
async def test_a_broken_file_stops_nothing(tmp_path, content: bytes, caplog) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert await Leftovers(tmp_path / FILE).end() == []
    assert "cannot read children.json" in caplog.text


async def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, caplog) -> None:
    noted = Leftovers(tmp_path / "nowhere" / FILE)
    noted.note([os.getpid()])
    assert "cannot write children.json" in caplog.text
    assert await noted.end() == []


def test_a_start_is_told_from_the_machines(monkeypatch) -> None:
    before = leftovers._started(os.getpid())
    assert 0 < before < psutil.Process().create_time()
    assert leftovers._started(2**22 + 1) is None
