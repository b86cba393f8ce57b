"""From a method and a path to a handler.

1. A path without braces beats one with; among those with, the one added first wins.
2. `{name}` stands for one segment, `{name...}` (last) for the rest of the path, slashes included; both are never empty.
3. HEAD is answered by GET's handler, OPTIONS by the router itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mesh.errors import BadRequest, NotFound
from mesh.http.errors import error_response
from mesh.http.message import Response

if TYPE_CHECKING:
    from mesh.http.message import AnyResponse, Handler, Request


@dataclass(slots=True)
class _Route:
    segments: list[str]
    handlers: dict[str, Handler] = field(default_factory=dict)

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The parameters when the path is ours."""
        params: dict[str, str] = {}
        for index, pattern in enumerate(self.segments):
            if pattern.endswith("...}"):
                rest = "/".join(segments[index:])
                return params | {pattern[1:-4]: rest} if rest else None
            if index >= len(segments) or not _match_segment(pattern, segments[index], params):
                return None
        return params if len(segments) == len(self.segments) else None


def _match_segment(pattern: str, segment: str, params: dict[str, str]) -> bool:
    if not pattern.startswith("{"):
        return pattern == segment
    params[pattern[1:-1]] = segment
    return segment != ""


class Router:
    """The routes of one server."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Handler]] = {}
        self._patterns: dict[str, _Route] = {}

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Answer `method` on `path` by `handler`. Raises ValueError when that is taken."""
        if "{" in path:
            handlers = self._patterns.setdefault(path, _Route(path.split("/"))).handlers
        else:
            handlers = self._exact.setdefault(path, {})
        if method in handlers:
            raise ValueError(f"{method} {path} has a handler already")
        handlers[method] = handler

    async def answer(self, request: Request) -> AnyResponse:
        """Run the handler. Raises NotFound for an unknown path, and whatever the handler raises."""
        handlers = self._handlers(request)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is not None:
            return await handler(request)
        if not handlers:
            raise NotFound(f"there is nothing at {request.path[:200]}; the API is under /v1, as in /v1/chat/completions")
        return _other_method(request, handlers)

    def _handlers(self, request: Request) -> dict[str, Handler]:
        """What is known at the request's path, by method; fills in its parameters."""
        target = request.target or request.path
        if exact := self._exact.get(target):
            return exact
        segments = [unquote(segment) for segment in target.split("/")]
        known: dict[str, Handler] = dict(self._exact.get("/".join(segments), {}))
        for route in self._patterns.values():
            params = route.match(segments)
            if params is not None:
                request.params = params | request.params
                known = route.handlers | known
        return known


def _other_method(request: Request, handlers: dict[str, Handler]) -> Response:
    allow = ", ".join(sorted({*handlers, "OPTIONS"} | ({"HEAD"} if "GET" in handlers else set())))
    if request.method == "OPTIONS":
        return Response(204, headers={"allow": allow})
    error = BadRequest(
        f"{request.method} is not possible at {request.path[:200]}; it takes {allow}", status=405, code="method_not_allowed"
    )
    return error_response(error, {"allow": allow})
