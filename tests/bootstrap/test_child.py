import os
from pathlib import Path

import psutil
import pytest
import trio

from bootstrap import child as module
from bootstrap.child import Child
from mesh.errors import BackendFailed, Misconfigured, TimedOut, Unavailable

READY = 'print(\'{"event": "ready", "addresses": ["/a"]}\', flush=True)\n'
WAIT = "import time\ntime.sleep(1000)\n"


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))

    def make(code, limit=20.0):
        (tmp_path / "a_role.py").write_text(code)
        return Child("node", "a_role", ["--flag", "value"], log=tmp_path / "log", limit=limit)

    return make


async def test_its_life(make, pipe, nursery, tmp_path):
    child = make(f"import os, sys\nprint(sys.argv[1:], os.getsid(0) == os.getpid(), file=sys.stderr, flush=True)\n{READY}{WAIT}")
    await nursery.start(child.run, pipe)
    assert child.ready == {"event": "ready", "addresses": ["/a"]}
    assert child.last_lines() == "\n    ['--flag', 'value'] True"
    before = psutil.Process().children()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        _, alive = await trio.to_thread.run_sync(psutil.wait_procs, before, 15)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


async def test_foreign_settings_do_not_reach_it(make, pipe, nursery, monkeypatch):
    monkeypatch.setenv("INFERMESH_BOOTSTRAP", "/elsewhere")
    monkeypatch.setenv("LIBP2P_BOOTSTRAP_PEERS", "/elsewhere")
    code = "import os, sys\nprint(sorted(n for n in os.environ if n[:6] in ('INFERM', 'LIBP2P')), file=sys.stderr, flush=True)\n"
    child = make(code + READY + WAIT)
    await nursery.start(child.run, pipe)
    assert child.last_lines() == "\n    ['INFERMESH_PARENT_FD']"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("end", "said", "kind"),
    [("sys.exit(2)", "exit code 2", Misconfigured), ("os.kill(os.getpid(), 9)", "SIGKILL", BackendFailed)],
)
@pytest.mark.parametrize("ready", ["", READY])
async def test_an_end_is_told_with_the_last_lines(make, pipe, end, said, kind, ready):
    child = make(f"import os, sys\nfor n in range(20): print('line', n, file=sys.stderr, flush=True)\n{ready}{end}\n")
    with pytest.raises(kind) as caught:
        await child.run(pipe)
    first, *lines = caught.value.message.splitlines()
    assert first == f"the node ended ({said})"
    assert lines == [f"    line {n}" for n in range(12, 20)]


async def test_one_that_is_never_ready(make, pipe, monkeypatch):
    monkeypatch.setattr(module, "READY_LIMIT", 0.2)
    with pytest.raises(TimedOut, match=r"the node was not ready within 0\.2 s; its log is"):
        await make(WAIT).run(pipe)


async def test_one_that_says_something_else(make, pipe):
    with pytest.raises(Unavailable, match="something else than its ready line: b'hello"):
        await make(f"print('hello', flush=True)\n{WAIT}").run(pipe)


async def test_an_endless_line_is_not_kept(make, pipe):
    with pytest.raises(Unavailable, match="something else"):
        await make("import sys\nfor _ in range(10): sys.stdout.write('x' * 50_000)\n").run(pipe)


DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{READY}{WAIT}"


async def test_a_deaf_one_is_killed_after_its_limit(make, pipe):
    async with trio.open_nursery() as nursery:
        await nursery.start(make(DEAF, limit=0.2).run, pipe)
        nursery.cancel_scope.cancel()


async def test_a_deaf_one_is_killed_at_once_in_a_hurry(make, pipe):
    child = make(DEAF, limit=1000.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run, pipe)
        child.hurry.set()
        nursery.cancel_scope.cancel()
