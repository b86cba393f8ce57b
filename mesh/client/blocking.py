"""The client for programs without trio: the mesh lives in a thread of its own, calls block."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from mesh.client.client import MeshClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from mesh.client.answer import Answer, Embeddings
    from mesh.client.client import MeshNode
    from mesh.client.requests import Sampling
    from mesh.messages.record import ModelEntry

Result = TypeVar("Result")


class BlockingMeshClient:
    """`with MeshClient.sync(...) as client:`; may be used from any thread but trio's. Errors are MeshClient's."""

    def __init__(self, **options: Any) -> None:
        self._client = MeshClient(**options)
        self._thread = threading.Thread(target=self._run, name="mesh-client", daemon=True)
        self._settled = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        """Join. Blocks as long as MeshClient does."""
        self._thread.start()
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave, and wait for the thread."""
        assert self._token is not None
        assert self._stop is not None
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()

    def models(self) -> list[ModelEntry]:
        """As MeshClient's."""
        return self._call(self._client.models)

    def nodes(self) -> list[MeshNode]:
        """As MeshClient's."""
        return trio.from_thread.run_sync(self._client.nodes, trio_token=self._token)

    def chat(self, model: str, messages: Iterable[Mapping[str, Any]], **sampling: Unpack[Sampling]) -> Answer:
        """As MeshClient's."""
        return self._call(lambda: self._client.chat(model, messages, **sampling))

    def embed(self, model: str, inputs: str | Sequence[str | int | list[int]], *, dimensions: int | None = None) -> Embeddings:
        """As MeshClient's."""
        return self._call(lambda: self._client.embed(model, inputs, dimensions=dimensions))

    def stream(self, model: str, messages: Iterable[Mapping[str, Any]], **sampling: Unpack[Sampling]) -> Iterator[str]:
        """The pieces of an answer. Closing the iterator cancels the work at the node."""
        manager = self._client.stream(model, messages, **sampling)
        stream = self._call(manager.__aenter__)
        try:
            while (piece := self._call(lambda: anext(stream, None))) is not None:
                yield piece
        finally:
            self._call(lambda: manager.__aexit__(None, None, None))

    def _call(self, function: Callable[[], Awaitable[Result]]) -> Result:
        return trio.from_thread.run(function, trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits in __enter__
            self._error = error
        finally:
            self._settled.set()

    async def _live(self) -> None:
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with self._client:
            self._settled.set()
            await self._stop.wait()
