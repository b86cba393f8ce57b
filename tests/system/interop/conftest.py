"""A js-libp2p peer, and a stream of somebody else that must not notice what strangers do to its node."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HERE = Path(__file__).parent
INSTALL_LIMIT = 120  # seconds
OLDEST_NODE = 20
TOKENS_PER_SECOND = 50


@dataclass(frozen=True)
class Watch:
    """The gateway whose stream is watched, and a wait for tokens that were made after now."""

    gateway: Any
    goes_on: Callable[[], Awaitable[None]]


@pytest.fixture(scope="session")
def javascript() -> Path:
    """The folder of the js peer with its packages, kept in the virtual environment from run to run."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the js-libp2p peer needs {program}, which is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"the js-libp2p peer needs node {OLDEST_NODE} or newer, {version} is installed")
    lock = (HERE / "package-lock.json").read_bytes()
    home = Path(sys.prefix) / "interop" / hashlib.sha256(lock).hexdigest()[:16]
    if not home.exists():
        install(home)
    # Beside its packages, because that is where node looks for them.
    shutil.copy(HERE / "peer.js", home)
    return home


def install(home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
        except subprocess.TimeoutExpired:
            pytest.skip(f"the js-libp2p peer's packages could not be installed within {INSTALL_LIMIT} s")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"the js-libp2p peer's packages could not be installed: {error.stderr.strip()[-300:]}")
        with suppress(OSError):  # another test process may have been first
            Path(folder).rename(home)
            Path(folder).mkdir()  # what is to be removed


@pytest.fixture
def js_peer(javascript: Path) -> Callable[..., Any]:
    """Runs the js peer to its end; what happened, by the name of the event."""

    async def run(*arguments: str) -> dict[str, list[dict[str, Any]]]:
        with trio.fail_after(60):
            done = await trio.run_process(
                ["node", "peer.js", *arguments], cwd=javascript, capture_stdout=True, capture_stderr=True, check=False
            )
        assert done.returncode == 0, done.stderr.decode()
        events: dict[str, list[dict[str, Any]]] = {}
        for line in done.stdout.splitlines():
            event = json.loads(line)
            events.setdefault(event["event"], []).append(event)
        return events

    return run


@pytest.fixture
def bystander(fleet: Any, http: Any, until: Any, chat: Any) -> Callable[..., Any]:
    """`async with bystander(node)`: a gateway streams from the node all the while, over one link that never breaks."""

    @asynccontextmanager
    async def watch(node: Any) -> AsyncIterator[Watch]:
        gateway = await fleet.gateway("--no-mdns", "--bootstrap", node.address)
        body = chat("model-a", stream=True, max_tokens=20_000)
        pieces = 0

        async def served() -> bool:
            return bool((await http.get(f"{gateway.url}/v1/models")).json()["data"])

        async def follow() -> None:
            nonlocal pieces
            async with http.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    assert '"error"' not in line
                    pieces += line.startswith("data: {")
            raise AssertionError("the stream ended before the test")

        async def goes_on() -> None:
            now = pieces
            await until(lambda: pieces > now + 10)

        await until(served)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await until(lambda: pieces)
            yield Watch(gateway, goes_on)
            await goes_on()
            nursery.cancel_scope.cancel()
        assert f"the link to {node.ready['peer_id']}" not in gateway.log.read_text()

    return watch


@pytest.fixture
async def slow_node(fleet: Any) -> Any:
    """A node whose answers take as long as a test."""
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0/ws")
    knobs = f"model-a;tokens_per_second={TOKENS_PER_SECOND};length=20000"
    return await fleet.mock(knobs, "--no-mdns", *listen)
