import os
import signal

import psutil
import pytest
import trio

from mesh.errors import BadRequest, Unavailable
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from node.multiplexer.hooked import HookedModel, HookSettings
from node.multiplexer.shell import Hook


async def run(script, *, limit=20.0, strays=lambda _: None):
    hook = Hook("wake", "the-model", script, limit=limit, strays=strays)
    await hook.run()
    return list(hook.lines)


async def test_a_hook_is_a_script_or_a_path_and_knows_its_model(tmp_path) -> None:
    assert await run('echo "$LLMUX_MODEL $INFERMESH_MODEL"; exit 0') == ["the-model the-model"]
    script = tmp_path / "hook.sh"
    script.write_text("#!/bin/sh\necho from a file\n")
    script.chmod(0o755)
    assert await run(str(script)) == ["from a file"]


async def test_a_hook_that_fails_tells_why() -> None:
    with pytest.raises(Unavailable, match=r"wake hook of the-model exited with code 3: error: no such container"):
        await run("echo 'error: no such container' >&2; exit 3")


async def test_a_hook_that_hangs_is_ended_with_its_whole_group(tmp_path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(Unavailable, match=r"took longer than 0\.5 s and was ended; it said: waiting"):
        await run(f"echo waiting; sleep 1000 & echo $! > {pids}; trap '' TERM; sleep 1000", limit=0.5)
    assert not _runs(int(pids.read_text()))


async def test_what_a_hook_starts_stays_and_may_go_on_printing(tmp_path, nursery) -> None:
    pids, heard = tmp_path / "pids", trio.Event()

    async def read(output) -> None:
        async with output:
            async for _ in output:
                heard.set()

    await run(
        f"(while sleep 0.05; do echo still here; done) & echo $! > {pids}", strays=lambda output: nursery.start_soon(read, output)
    )
    pid = int(pids.read_text())
    try:
        with trio.fail_after(20):
            await heard.wait()
        assert _runs(pid)
    finally:
        os.killpg(os.getpgid(pid), signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Server:
    """A server that is there while a file is."""

    def __init__(self, file, tasks) -> None:
        self.tasks = tasks
        self._file = file
        self.asked = []

    async def infer(self, request, emit) -> None:
        self.asked.append((request.model, request.task, request.max_tokens))
        if not self._file.exists():
            raise Unavailable("the service cannot be reached")
        if request.task == "embedding":
            emit(Done("stop", Usage(1, 0), Performance(0, 0, 0, 0, 1), embeddings=[b"1234"]))
            return
        emit(Delta(0, [], "word"))
        emit(Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 1)))

    async def aclose(self) -> None:
        pass


@pytest.fixture
async def hooked(tmp_path, nursery):
    async def make(tasks=("chat", "completion"), **changes):
        up = tmp_path / "up"
        hooks = {"wake": f"touch {up}", "sleep": f"rm -f {up}", "alive": f"test -e {up}"} | changes
        server = Server(up, list(tasks))
        model = HookedModel(HookSettings(model="m", **hooks), server)
        await nursery.start(model.run)
        return model, server, up

    return make


async def test_a_model_wakes_by_its_hook_and_proves_it_by_a_token(hooked) -> None:
    model, server, up = await hooked()
    assert not await model.alive()
    await model.wake()
    assert server.asked == [("m", "completion", 1)]
    assert await model.alive()
    await model.sleep()
    assert not up.exists()


async def test_a_model_that_embeds_proves_it_by_a_vector_under_the_name_that_its_server_has(hooked) -> None:
    model, server, _ = await hooked(tasks=["embedding"], upstream_model="org/M")
    await model.wake()
    assert [(name, task) for name, task, _ in server.asked] == [("org/M", "embedding")]
    with pytest.raises(BadRequest, match="m can do embedding only"):
        await model.infer(InferenceRequest(request_id="1", model="m", task="completion", prompt="p"), lambda _: None)


async def test_a_hook_that_says_yes_and_wakes_nothing_is_found_out(hooked) -> None:
    model, _, _ = await hooked(wake="exit 0")
    with pytest.raises(Unavailable, match="says that it is awake, but generates nothing: the service cannot be reached"):
        await model.wake()


async def test_an_alive_that_hangs_is_a_no(hooked) -> None:
    model, _, _ = await hooked(alive="sleep 1000", alive_timeout_secs=0.2)
    assert not await model.alive()
