"""The HTTP/1.1 server: thin, bounded everywhere, and never held up by a client."""

from mesh.http.errors import error_body, error_response
from mesh.http.limits import Limits
from mesh.http.message import Handler, Request, Response, StreamingResponse, StreamWriter, WebSocketResponse
from mesh.http.router import Router
from mesh.http.server import serve
from mesh.http.websocket import WebSocket

__all__ = [
    "Handler",
    "Limits",
    "Request",
    "Response",
    "Router",
    "StreamWriter",
    "StreamingResponse",
    "WebSocket",
    "WebSocketResponse",
    "error_body",
    "error_response",
    "serve",
]
