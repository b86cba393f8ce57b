from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from mesh.errors import NotFound
from mesh.http import Request, Response, Router

if TYPE_CHECKING:
    from mesh.http import Handler


def named(name: str) -> Handler:
    async def handler(request: Request) -> Response:
        return Response.json([name, request.params])

    return handler


@pytest.fixture
def router() -> Router:
    router = Router()
    for method, path in (
        ("GET", "/services"),
        ("POST", "/services"),
        ("GET", "/services/all"),
        ("GET", "/services/{name}"),
        ("DELETE", "/services/{id}"),
        ("GET", "/services/{name}/health"),
        ("GET", "/models/{id...}"),
    ):
        router.add(method, path, named(f"{method} {path}"))
    return router


@pytest.mark.parametrize(
    ("method", "target", "name", "params"),
    [
        ("GET", "/services", "GET /services", {}),
        ("POST", "/services", "POST /services", {}),
        ("HEAD", "/services", "GET /services", {}),
        ("GET", "/%73ervices", "GET /services", {}),
        ("GET", "/services/all", "GET /services/all", {}),
        ("GET", "/services/x", "GET /services/{name}", {"name": "x"}),
        ("GET", "/services/a%2Fb%20c", "GET /services/{name}", {"name": "a/b c"}),
        ("DELETE", "/services/x", "DELETE /services/{id}", {"id": "x"}),
        ("GET", "/services/x/health", "GET /services/{name}/health", {"name": "x"}),
        ("GET", "/models/org/name", "GET /models/{id...}", {"id": "org/name"}),
    ],
)
async def test_the_handler_and_its_parameters(router, method, target, name, params):
    response = await router.answer(Request(method, target, target=target))
    found_name, found = msgspec.json.decode(response.body)
    assert found_name == name
    assert params.items() <= found.items()


@pytest.mark.parametrize("path", ["/", "", "/service", "/services/", "/services/x/", "/services/x/y", "/models", "/models/", "*"])
async def test_what_is_not_there(router, path):
    with pytest.raises(NotFound):
        await router.answer(Request("GET", path))


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/services", "GET, HEAD, OPTIONS, POST"),
        ("/services/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/models/a/b", "GET, HEAD, OPTIONS"),
    ],
)
async def test_other_methods_are_told_which_there_are(router, path, allow):
    response = await router.answer(Request("PUT", path))
    assert (response.status, response.headers["allow"]) == (405, allow)
    response = await router.answer(Request("OPTIONS", path))
    assert (response.status, response.headers["allow"]) == (204, allow)


def test_one_handler_for_one_place(router):
    with pytest.raises(ValueError, match="already"):
        router.add("GET", "/services", named("again"))
