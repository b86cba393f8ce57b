from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
import trio

from mesh.http import Router, serve
from mesh.messages.inference import Accepted, Delta, Done, Event, InferenceRequest, Performance, Usage
from mesh.messages.record import ModelEntry
from mesh.openai.routes import OpenAIRoutes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.service import Emit

DONE = Done(
    finish_reason="stop",
    usage=Usage(prompt_tokens=7, completion_tokens=3),
    performance=Performance(
        prefill_time_ms=1.5000001, decode_time_ms=2.4999999, queue_time_ms=0.5, tokens_per_second=1200.0, batch_size=2
    ),
)


class StubService:
    """An InferenceService that plays a script: events are emitted, errors raised, trio.Events waited for."""

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []
        self.script: list[Event | Exception | trio.Event] = [
            Accepted(node="node-a", attempts=2),
            Delta(0, [1], "Hel"),
            Delta(1, [2], ""),
            Delta(2, [3], "lo"),
            DONE,
        ]
        self.started = trio.Event()
        self.cancelled = trio.Event()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        self.requests.append(request)
        self.started.set()
        try:
            for step in self.script:
                await self._play(step, emit)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def _play(self, step: Event | Exception | trio.Event, emit: Emit) -> None:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, trio.Event):
            await step.wait()
        else:
            await trio.lowlevel.checkpoint()
            emit(step)


@pytest.fixture
def done() -> Done:
    return DONE


@pytest.fixture
def service() -> StubService:
    return StubService()


@pytest.fixture
def catalog() -> list[ModelEntry]:
    return [ModelEntry(id="org/model-b", created=5), ModelEntry(id="model-a", aliases=["a"]), ModelEntry(id="model-a", created=9)]


@pytest.fixture
def router(service, catalog) -> Router:
    router = Router()
    OpenAIRoutes(service, lambda: catalog).mount(router)
    return router


@pytest.fixture
def running(router) -> Callable[..., object]:
    """`async with running() as url`: a real listening server with the routes over the stub."""

    @asynccontextmanager
    async def start() -> AsyncIterator[str]:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                port = await nursery.start(serve, router, "127.0.0.1", 0)
                try:
                    yield f"http://127.0.0.1:{port}"
                finally:
                    nursery.cancel_scope.cancel()

    return start


@pytest.fixture
def client(running) -> Callable[..., object]:
    """`async with client() as client`: an HTTP client of such a server."""

    @asynccontextmanager
    async def start() -> AsyncIterator[httpx2.AsyncClient]:
        async with running() as url, httpx2.AsyncClient(base_url=url, timeout=20) as http:
            yield http

    return start


TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class Schema:
    """A checker for what the subset's reply schemas use.

    Checked: `$ref`, `type`, `required`, `properties`, `items`, `enum`, `additionalProperties` as a schema, `anyOf`, `oneOf` (as
    anyOf), `allOf`, `nullable`. Not checked: formats, lengths, and names that a schema does not mention (it allows them).
    """

    def __init__(self, schemas: dict[str, Any]) -> None:
        self.schemas = schemas

    def check(self, name: str, value: Any) -> None:
        """Raise AssertionError naming every fault."""
        faults = self.faults(self.schemas[name], value, "$")
        assert not faults, faults

    def faults(self, schema: dict[str, Any], value: Any, path: str) -> list[str]:
        if "$ref" in schema:
            schema = {**schema, **self.schemas[schema["$ref"].rsplit("/", 1)[1]]}
        if value is None and schema.get("nullable"):
            return []
        faults = [fault for part in schema.get("allOf", []) for fault in self.faults(part, value, path)]
        options = schema.get("anyOf", schema.get("oneOf"))
        if options and all(self.faults(option, value, path) for option in options):
            faults.append(f"{path}: fits no option")
        if "enum" in schema and value not in schema["enum"]:
            faults.append(f"{path}: {value!r} is not in {schema['enum']}")
        return faults + self._type_faults(schema, value, path)

    def _type_faults(self, schema: dict[str, Any], value: Any, path: str) -> list[str]:
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        allowed = tuple(kind for name in kinds for kind in TYPES[name])
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            return [f"{path}: {value!r} is not {kinds}"]
        faults: list[str] = []
        if isinstance(value, dict):
            faults += [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
            rest = schema.get("additionalProperties")
            for name, item in value.items():
                inner = schema.get("properties", {}).get(name, rest)
                if isinstance(inner, dict):
                    faults += self.faults(inner, item, f"{path}.{name}")
        if isinstance(value, list):
            for index, item in enumerate(value):
                faults += self.faults(schema.get("items", {}), item, f"{path}[{index}]")
        return faults


@pytest.fixture(scope="session")
def schema() -> Schema:
    text = (Path(__file__).parent / "openai-subset.json").read_text()
    return Schema(json.loads(text)["components"]["schemas"])


@pytest.fixture
def read_events() -> Callable[[bytes], list[Any]]:
    """The events of a stream, decoded; `[DONE]` as it is."""

    def read(body: bytes) -> list[Any]:
        events = []
        for event in body.decode().split("\n\n")[:-1]:
            assert event.startswith("data: ")
            assert "\n" not in event
            data = event.removeprefix("data: ")
            events.append(data if data == "[DONE]" else msgspec.json.decode(data))
        return events

    return read
