from dataclasses import dataclass, field

import pytest
import trio

from mesh.errors import MeshError, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from node.backends.base import BackendStatus, nobody_listens
from node.multiplexer.multiplexer import Multiplexer
from node.multiplexer.policies import POLICIES
from node.multiplexer.presented import present
from node.multiplexer.settings import MultiplexerSettings


def request(model, number=0, **wishes):
    return InferenceRequest(request_id=f"{model}-{number}", model=model, task="completion", prompt="p", **wishes)


class Model:
    """A `Switchable` in full view: what was called, and how it goes."""

    def __init__(self, model, log):
        self.entry = ModelEntry(id=model, state="ready", context_length=64)
        self.load = ModelLoad("ready", slots=4)
        self.changed = nobody_listens
        self.gives_tokens = True
        self.log = log
        self.memory = 0
        self.awake = False
        self.well = True
        self.wake_takes = 2.0
        self.work_takes = 1.0
        self.wake_error = self.sleep_error = None

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await trio.sleep_forever()

    async def wake(self):
        self.log.append(f"wake {self.entry.id}")
        await trio.sleep(self.wake_takes)
        if self.wake_error:
            raise Unavailable(self.wake_error)
        self.awake = self.well = True

    async def sleep(self):
        self.log.append(f"sleep {self.entry.id}")
        await trio.sleep(0.5)
        if self.sleep_error:
            raise Unavailable(self.sleep_error)
        self.awake = False

    async def alive(self):
        return self.awake and self.well

    async def infer(self, request, emit):
        assert self.awake
        self.log.append(request.request_id)
        emit(Accepted())
        await trio.sleep(self.work_takes)
        emit(Delta(0, [1], "word"))
        emit(Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 1)))

    def status(self):
        return BackendStatus(state="ready", running=self.awake)


@dataclass
class Stage:
    multiplexer: Multiplexer
    models: dict[str, Model]
    log: list[str]
    nursery: trio.Nursery
    backends: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)

    def ask(self, model, number=0, **wishes):
        """Start a request in the background; the scope that ends it."""
        scope = trio.CancelScope()

        async def run():
            wanted = request(model, number, **wishes)
            events = []
            with scope:
                try:
                    await self.multiplexer.infer(model, wanted, events.append)
                    self.results[wanted.request_id] = events
                except MeshError as error:
                    self.results[wanted.request_id] = error

        self.nursery.start_soon(run)
        return scope


@pytest.fixture
async def stage(nursery):
    """Makes a running multiplexer of two models, on a clock that jumps."""

    async def make(*, policy="fifo", models=("a", "b"), memory=(), awake=(), prepare=lambda _: None, **settings):
        log = []
        made = {model: Model(model, log) for model in models}
        for model, size in dict(memory).items():
            if model in made:
                made[model].memory = size
        for model in awake:
            made[model].awake = True
        prepare(made)
        multiplexer = Multiplexer(list(made.values()), MultiplexerSettings(**settings), policy=POLICIES[policy])
        backends = {backend.entry.id: backend for backend in present(multiplexer)}
        await nursery.start(multiplexer.run)
        return Stage(multiplexer, made, log, nursery, backends)

    return make
