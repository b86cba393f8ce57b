"""Machines that are not well: a clock that is hours off, a disk that is full. The mesh goes on and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

HOUR = 3600
SOURCE = Path(__file__).with_name("shifted_clock.c")
MESH = [sys.executable, "-c", "import sys; from bootstrap.command import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The environment of a program whose wall clock is off by some hours."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the shifted clock cannot be built")
    library = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], capture_output=True, check=False
    )
    if built.returncode != 0:
        pytest.skip(f"the shifted clock cannot be built here: {built.stderr.decode(errors='replace')[:200]}")

    def environment(hours: int) -> dict[str, str]:
        env = {"LD_PRELOAD": str(library), "SHIFT_SECONDS": str(hours * HOUR)}
        told = subprocess.run(["date", "+%s"], env={**os.environ, **env}, capture_output=True, check=False).stdout
        own = subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout
        if not told or abs(int(told) - int(own) - hours * HOUR) > 60:
            pytest.skip("LD_PRELOAD does not shift a clock on this system")
        return env

    return environment


async def carriers(http: Any, url: str) -> dict[str, str]:
    peers = (await http.get(f"{url}/v1/mesh/peers")).json()["peers"]
    return {peer["peer_id"]: peer["carrier"] for peer in peers if peer["linked"]}


async def test_peers_with_clocks_hours_apart_are_one_mesh(fleet: Any, http: Any, until: Any, chat: Any, shifted: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    join = ("--no-mdns", "--bootstrap", bootstrap.address)
    state = ("--state-dir", str(fleet.logs / "kept"))
    gateway = await fleet.gateway(*join, env=shifted(-7))
    mock = ("--port", "0", "--service-type", "mock", "--args", "model-a", *join, *state)
    node = await fleet.start("node", *mock, env=shifted(9))

    async def works() -> bool:
        return bool((await http.post(f"{gateway.url}/v1/chat/completions", json=chat("model-a"))).status_code == 200)

    async def direct() -> bool:
        return (await carriers(http, gateway.url)).get(node.ready["peer_id"]) == "direct"

    await until(works)
    await until(direct)
    # The same node comes back with a clock that went back by fifteen hours: others hold a record from its future.
    node.kill()
    again = await fleet.start("node", *mock, env=shifted(-6))
    assert again.ready["peer_id"] == node.ready["peer_id"]
    await until(works)
    await until(direct)


async def test_an_invite_counts_on_the_clock_of_the_member_alone(fleet: Any, http: Any, until: Any, shifted: Any) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns", "--private", env=shifted(-5))
    gateway = await fleet.gateway("--no-mdns", "--bootstrap", await invite(bootstrap, shifted(-5)), env=shifted(5))

    async def linked() -> bool:
        return bootstrap.ready["peer_id"] in await carriers(http, gateway.url)

    await until(linked)


async def invite(program: Any, env: dict[str, str]) -> str:
    command = [*MESH, "invite", "--state-dir", str(program.log.with_suffix("")), "--expires", "1h"]
    done = await trio.run_process(command, capture_stdout=True, env={**os.environ, **env})
    return str(done.stdout.decode().strip())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "infermesh-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode(errors='replace').strip()[:200]}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


async def test_a_full_disk_takes_no_service_away_and_is_said(
    fleet: Any, http: Any, until: Any, chat: Any, small_disk: Path
) -> None:
    state = ("--state-dir", str(small_disk / "state"))
    gateway = await fleet.gateway("--no-mdns", *state)

    async def register(name: str) -> str:
        body = {
            "name": name,
            "host": "127.0.0.1",
            "port": 9,
            "hostname": "here",
            "url": "http://127.0.0.1:9",
            "status": "running",
        }
        answer = await http.post(f"{gateway.url}/services", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["message"])

    async def stored() -> str:
        return str((await http.get(f"{gateway.url}/stats")).json()["persistence"])

    assert "will not survive" not in await register("early")
    ballast = fill(small_disk)
    assert "will not survive a restart of the gateway" in await register("late")
    assert await stored() != "ok"
    assert "registered services are not stored" in gateway.log.read_text()
    assert (await http.post(f"{gateway.url}/services/late/heartbeat")).status_code == 200
    assert (await http.get(f"{gateway.url}/services")).json()["total"] == 2
    node = await fleet.mock("model-a", "--no-mdns", "--bootstrap", gateway.address)

    async def works() -> bool:
        return bool((await http.post(f"{gateway.url}/v1/chat/completions", json=chat("model-a"))).status_code == 200)

    await until(works)

    # It even starts on the full disk, with what was stored before.
    assert await gateway.stop() == 0
    fill(small_disk)
    gateway = await fleet.gateway("--no-mdns", "--bootstrap", node.address, *state)
    assert "cannot write the live addresses" in gateway.log.read_text()
    assert [one["name"] for one in (await http.get(f"{gateway.url}/services")).json()["services"] if one["port"] == 9] == [
        "early"
    ]
    await until(works)
    ballast.unlink()
    assert "will not survive" not in await register("late")
    assert await stored() == "ok"


@pytest.mark.parametrize("role", ["bootstrap", "gateway"])
async def test_a_first_start_on_a_full_disk_leaves_no_broken_key(fleet: Any, small_disk: Path, role: str) -> None:
    ballast = fill(small_disk)
    state = ("--no-mdns", "--private", "--state-dir", str(small_disk / "state"))
    program = fleet.spawn(role, *state, *(("--port", "0") if role == "gateway" else ()))
    assert await program.wait() == 2
    (line,) = program.log.read_text().strip().splitlines()
    assert line.startswith(f"mesh-{role}: cannot ")
    assert "No space left on device" in line
    ballast.unlink()
    await fleet.start(role, *state, *(("--port", "0") if role == "gateway" else ()))
