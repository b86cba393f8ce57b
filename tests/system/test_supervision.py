"""What becomes of a node's processes when something goes wrong with one of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
import trio

from node.leftovers import FILE, Leftovers

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def test_a_stopped_worker_is_replaced_and_a_killed_node_leaves_nothing(
    fleet: Any, http: Any, until: Any, chat: Any
) -> None:
    node = await fleet.node("--no-mdns")
    info = (await http.get(f"{node.url}/info")).json()
    first = node.worker()
    noted = json.loads((fleet.logs / "node-0" / FILE).read_text())
    assert [child["pid"] for child in noted["children"]] == [first.pid]
    first.send_signal(signal.SIGSTOP)

    async def replaced() -> bool:
        health = await http.get(f"{node.url}/health")
        return health.status_code == 200 and health.json()["restart_count"] == 1

    await until(replaced, limit=120)
    health = (await http.get(f"{node.url}/health")).json()
    assert "hangs" in health["last_error"]
    assert not first.is_running()
    answer = await http.post(f"{info['url']}/v1/chat/completions", json=chat("infermesh-demo", max_tokens=2))
    assert answer.status_code == 200
    report = (await http.get(f"{node.url}/status")).json()
    assert (report["total_successful"], report["backends"][0]["status"], report["backends"][0]["type"]) == (1, "healthy", "GPU")
    family = node.children()
    assert len(family) >= 2, "the worker and its guard"
    node.worker().send_signal(signal.SIGSTOP)  # so that it cannot see for itself that the node is gone
    node.kill()
    await until(lambda: not any(_lives(process) for process in family))


async def test_what_an_earlier_node_left_behind_is_ended_before_the_start(fleet: Any) -> None:
    state = fleet.logs / "node-0"
    state.mkdir()
    leftover = _start_sleeper()
    try:
        Leftovers(state / FILE).note([leftover.pid])
        node = await fleet.mock("m", "--no-mdns")
        assert leftover.poll() == -signal.SIGTERM
        assert "left 1 processes behind" in node.log.read_text()
        assert await node.stop() == 0
    finally:
        leftover.kill()
        await trio.to_thread.run_sync(leftover.wait)


def _start_sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
