"""`mesh up`: one bootstrap peer, one node with the demo model and one gateway, on loopback, as a mesh of its own.

1. It finds nobody and nobody finds it: no mDNS, loopback only, a mesh name drawn at every start.
2. The first SIGTERM, SIGINT or SIGHUP stops the three, who finish what is in flight; a second one kills them.
3. When one of the three ends, the others are stopped and it is said which one and why.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio
from rich.console import Console

from bootstrap.child import Child
from bootstrap.remote import Gateway
from mesh.errors import MeshError, Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mesh.messages.record import Role

DEMO_MODEL = "infermesh-demo"
HOST = "127.0.0.1"
MODULES: Mapping[Role, str] = {"bootstrap": "bootstrap", "node": "node", "gateway": "gateway"}

_SERVABLE_LIMIT = 30.0
"""Seconds from the last ready line until the gateway can pass a request on: one dial and one heartbeat."""

_STOP_MARGIN = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class UpSettings:
    """What the operator chose. `drain_timeout` in seconds; without `state_dir` nothing is kept."""

    port: int
    state_dir: Path | None
    drain_timeout: float
    log_level: str


def up(settings: UpSettings) -> int:
    """Run the local mesh until it is told to stop. Returns the exit code. Raises MeshError when it cannot start or breaks."""
    with _folder(settings.state_dir) as folder, _parent_pipe() as pipe:
        local = LocalMesh(settings, folder, pipe)
        trio.run(local.run)
    if local.failure is not None:
        raise local.failure
    return 0


class LocalMesh:
    """The three processes and what watches them."""

    def __init__(self, settings: UpSettings, folder: Path, parent_pipe: int) -> None:
        self.failure: MeshError | None = None
        self._settings = settings
        self._folder = folder
        self._parent_pipe = parent_pipe
        self._mesh = f"up-{secrets.token_hex(4)}"
        self._children: list[Child] = []
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Start, announce, watch; return when all three have ended. `failure` says why, unless it was asked to stop."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            with self._scope:
                async with trio.open_nursery() as family:
                    try:
                        gateway = await self._start(family)
                    except MeshError as error:
                        self._fail(error)
                    else:
                        print(self._invitation(gateway), flush=True)
                        await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def _start(self, family: trio.Nursery) -> str:
        with _progress() as say:
            say("starting the bootstrap peer")
            bootstrap = await self._child(family, "bootstrap", [])
            way_in = ["--bootstrap", str(bootstrap.ready["addresses"][0]), "--host", HOST]
            say(f"starting the node: it loads {DEMO_MODEL}")
            await self._child(family, "node", [*way_in, "--port", "0"])
            say("starting the gateway")
            gateway = await self._child(family, "gateway", [*way_in, "--port", str(self._settings.port)])
            say("waiting until the gateway reaches the node")
            await _until_servable(str(gateway.ready["http"]))
        return str(gateway.ready["http"])

    async def _child(self, family: trio.Nursery, role: Role, arguments: list[str]) -> Child:
        state = self._folder / role
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        common = ["--no-mdns", "--mesh", self._mesh, "--listen", f"/ip4/{HOST}/tcp/0", "--state-dir", str(state)]
        common += ["--drain-timeout", str(self._settings.drain_timeout), "--log-level", self._settings.log_level]
        limit = self._settings.drain_timeout + _STOP_MARGIN
        child = Child(role, MODULES[role], [*common, *arguments], log=state / "log", limit=limit)
        self._children.append(child)

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                await child.run(self._parent_pipe, task_status=task_status)
            except MeshError as error:
                if not child.ready:
                    raise  # to whoever waits for its ready line
                self._fail(error)

        await family.start(live)
        return child

    def _fail(self, error: MeshError) -> None:
        self.failure = self.failure or error
        self._scope.cancel()

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            task_status.started()
            async for _ in received:
                if self._scope.cancel_called:
                    for child in self._children:
                        child.hurry.set()
                else:
                    print("\nstopping; once more stops at once", file=sys.stderr, flush=True)
                    self._scope.cancel()

    def _invitation(self, url: str) -> str:
        return f"""
infermesh is up: {url}

Ask it:

  {curl_line(url)}

From Python, with the openai package:

  {python_line(url)}

Logs: {self._folder}/*/log. Ctrl-C stops it."""


def curl_line(url: str) -> str:
    """A command that streams an answer, ready to be pasted into a shell."""
    body = {"model": DEMO_MODEL, "stream": True, "messages": [{"role": "user", "content": "Who are you?"}]}
    data = shlex.quote(msgspec.json.encode(body).decode())
    return f"curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d {data}"


def python_line(url: str) -> str:
    """The same with OpenAI's client, ready to be pasted into a shell."""
    messages = '[{"role": "user", "content": "Who are you?"}]'
    client = f'OpenAI(base_url="{url}/v1", api_key="none")'
    ask = f'{client}.chat.completions.create(model="{DEMO_MODEL}", messages={messages})'
    return f"python -c 'from openai import OpenAI; print({ask}.choices[0].message.content)'"


async def _until_servable(url: str) -> None:
    with trio.move_on_after(_SERVABLE_LIMIT):
        while not await _is_servable(url):  # noqa: ASYNC110 - it is another process that is waited for
            await trio.sleep(0.1)
        return
    raise Unavailable(f"the gateway at {url} did not reach the node within {_SERVABLE_LIMIT:g} s; look at their logs")


async def _is_servable(url: str) -> bool:
    try:
        await Gateway(url).get("/ready")
    except Unavailable:
        return False
    return True


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says on stderr what goes on: one changing line on a terminal, else a line each."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
    else:
        yield lambda text: print(f"mesh up: {text}", file=sys.stderr, flush=True)


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="infermesh-up-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    try:
        chosen.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Misconfigured(f"cannot use the folder {chosen}: {error.strerror}; choose another --state-dir") from error
    yield chosen.absolute()


@contextmanager
def _parent_pipe() -> Iterator[int]:
    """The read end of a pipe whose write end this process alone holds, until it dies."""
    reading, writing = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, writing)
        stack.callback(os.close, reading)
        yield reading
