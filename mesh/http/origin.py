"""Web pages as clients: who may read our answers from a browser.

1. A page served from this machine (a loopback origin) may call everything.
2. Any other page gets no CORS header, so its browser hides the answer from it.
3. A WebSocket has no such guard in the browser: foreign origins are refused, save the one we are reached under.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh.errors import Denied

if TYPE_CHECKING:
    from mesh.http.message import Request

PREFLIGHT_SECONDS = 600


def is_local(origin: str) -> bool:
    """Whether a page of this origin came from this machine."""
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cors_headers(request: Request) -> dict[str, str]:
    """The headers that let a local page read the answer; for a preflight, those that let it ask."""
    origin = request.headers.get("origin")
    if origin is None or not is_local(origin):
        return {}
    headers = {"access-control-allow-origin": origin, "vary": "origin"}
    if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        headers["access-control-allow-methods"] = "GET, POST, PUT, DELETE"
        headers["access-control-allow-headers"] = request.headers.get("access-control-request-headers", "*")
        headers["access-control-max-age"] = str(PREFLIGHT_SECONDS)
    else:
        headers["access-control-expose-headers"] = "*"
    return headers


def check_websocket_origin(request: Request) -> None:
    """Raise Denied when a foreign web page opens a WebSocket in a visitor's browser."""
    origin = request.headers.get("origin")
    if origin is None or is_local(origin) or origin.partition("://")[2] == request.headers.get("host"):
        return
    raise Denied(f"web pages of {origin} may not open a WebSocket here", status=403, code="origin_not_allowed")
