"""A server to talk to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from mesh.http import Router, serve
from tests.openai_server import DONE, TEXTS, Server

if TYPE_CHECKING:
    from mesh.messages.inference import Done


@pytest.fixture
def server(nursery):
    """Start one."""

    async def start(*models: str, router: Router | None = None, port: int = 0, **more: Any) -> Server:
        built = Server(list(models or ("far-model",)), **more)
        built.port = await nursery.start(partial(serve, router or built.router(), "127.0.0.1", port))
        return built

    return start


@pytest.fixture
def texts() -> list[str]:
    return TEXTS


@pytest.fixture
def done() -> Done:
    return DONE
