"""Every error of ours, split by whose fault it is.

1. One root, `MeshError`; nine kinds below it. A new situation gets a new `code`, not a new class.
2. Each kind knows its HTTP status and its OpenAI `type`; `code` is for programs, the message for people.
3. A message says what happened and what to do next. It never holds a secret, a path of ours or a stack trace.
4. Foreign exceptions are turned into these at the edge that imports the foreign library.
5. `retriable` says whether another node may do better with the very same request.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """The root. Raise one of the kinds below; catch this at an edge that answers somebody."""

    status: int = 500
    type: ClassVar[str] = "server_error"
    retriable: ClassVar[bool] = False
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`param` names the offending field (a JSON path), `retry_after` is in seconds."""
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after
        if status is not None:
            self.status = status


class BadRequest(MeshError):
    """The client's input is wrong (400, or 405, 408, 413, 415 by `status`). Sending it again cannot help."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class Denied(MeshError):
    """The caller may not do this: no key or a wrong one (401), or not allowed (403 by `status`)."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class NotFound(MeshError):
    """What was asked for does not exist: a model, a route, a stream."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class Conflict(MeshError):
    """It exists already, or two things claim the same name."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class Busy(MeshError):
    """A bound was reached (a queue, a connection cap). Not a failure: try elsewhere or after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"
    retriable = True
    default_code = "busy"


class Unavailable(MeshError):
    """Nobody can do it right now: no node, a lost link, a backend that is down."""

    status = 503
    type = "service_unavailable"
    retriable = True
    default_code = "unavailable"


class BackendFailed(MeshError):
    """A backend or its engine broke while it worked on the request."""

    status = 502
    type = "server_error"
    retriable = True
    default_code = "backend_failed"


class TimedOut(MeshError):
    """A stated time limit ran out. The message names the limit."""

    status = 504
    type = "timeout_error"
    retriable = True
    default_code = "engine_timeout"


class Misconfigured(MeshError):
    """The operator's input is wrong: a flag, a file, a port, a model directory. Programs print it and exit 2."""

    status = 500
    type = "server_error"
    default_code = "misconfigured"


KINDS: dict[str, type[MeshError]] = {
    kind.__name__: kind
    for kind in (
        MeshError, BadRequest, Denied, NotFound, Conflict, Busy, Unavailable, BackendFailed, TimedOut, Misconfigured,
    )
}  # fmt: skip
"""By name, as `messages.inference.Fail.kind` carries them between processes."""
