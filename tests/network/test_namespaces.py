"""The harness itself: what gets through, what does not, and that nothing stays behind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

from tests.network.namespaces import FOLDER, sweep

if TYPE_CHECKING:
    from pathlib import Path

    from tests.network.namespaces import Host, Network

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def echo(server: Host, address: str, *, task_status: trio.TaskStatus[int]) -> None:
    """Say everything back, on a port of a host."""

    async def serve(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    with server.inside():
        listeners = await trio.open_tcp_listeners(0, host=address)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(serve, listeners)


async def reaches(client: Host, address: str, port: int, limit: float = 2.0) -> bool:
    with client.inside(), trio.move_on_after(limit):
        async with await trio.open_tcp_stream(address, port) as stream:
            await stream.send_all(b"here")
            return bool(await stream.receive_some())
    return False


async def test_hosts_reach_each_other_until_they_are_cut(network: Network) -> None:
    one, two = network.host(), network.host()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(echo, two, two.ipv4)
        port6 = await nursery.start(echo, two, two.ipv6)
        assert await reaches(one, two.ipv4, port)
        assert await reaches(one, two.ipv6, port6)
        two.cut()
        assert not await reaches(one, two.ipv4, port, 0.3)
        two.mend()
        assert await reaches(one, two.ipv4, port, 10)
        network.split([one], [two])
        assert not await reaches(one, two.ipv4, port, 0.3)
        network.heal()
        assert await reaches(one, two.ipv4, port, 10)
        nursery.cancel_scope.cancel()


async def test_a_far_host_is_far_and_may_have_no_way_in(network: Network) -> None:
    near = network.host()
    far = network.far(delay=0.05, loss=0.01)
    hidden = network.far(inbound=False)
    async with trio.open_nursery() as nursery:
        served = {host: await nursery.start(echo, host, host.ipv4) for host in (near, far, hidden)}
        began = trio.current_time()
        assert await reaches(near, far.ipv4, served[far], 10)
        assert trio.current_time() - began >= 0.2, "a handshake and an echo: two round trips of 0.1 s"
        assert await reaches(hidden, near.ipv4, served[near], 10)
        assert await reaches(hidden, far.ipv4, served[far], 10)
        assert not await reaches(near, hidden.ipv4, served[hidden], 0.5)
        network.open(hidden)
        assert await reaches(near, hidden.ipv4, served[hidden], 10)
        hidden.cut()
        assert not await reaches(hidden, near.ipv4, served[near], 0.5)
        nursery.cancel_scope.cancel()


def left(name: str) -> list[str]:
    return [path.name for path in FOLDER.iterdir() if path.name.startswith(name)]


def test_what_a_killed_run_leaves_is_swept(network: Network, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from tests.network.namespaces import Network; network = Network(pathlib.Path(sys.argv[1]));"
        "program = network.host().spawn('node', command=['sleep', '600']); network.far();"
        "print(network.name, program.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False)
    name, sleeper = done.stdout.split()
    assert left(name)
    assert psutil.pid_exists(int(sleeper))
    sweep()
    assert not left(name)
    assert not psutil.pid_exists(int(sleeper)) or psutil.Process(int(sleeper)).status() == psutil.STATUS_ZOMBIE
    assert left(network.name), "what lives stays"
