"""Errors as clients see them: OpenAI's error object, everywhere."""

from __future__ import annotations

import math
from typing import Any

from mesh.errors import MeshError, Misconfigured
from mesh.http.message import Response

INTERNAL = MeshError("something went wrong here, not in your request; the log of this server says what")


def error_body(error: MeshError) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: MeshError, headers: dict[str, str] | None = None) -> Response:
    """The answer to a request that failed with `error`."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return Response.json(error_body(error), error.status, headers)


def public_error(error: Exception) -> MeshError | None:
    """The error that a client may see; None when it would show our inside.

    Looks through groups that hold a single error: a handler with a nursery of its own raises those.
    """
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, MeshError) and not isinstance(error, Misconfigured):
        return error
    return None
