"""What a client may take from the server. Every number here is one that a client can reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of one server; sizes in bytes, times in seconds."""

    head_bytes: int = 16 * 1024
    """Request line and headers together; more is a 431."""
    body_bytes: int = 8 * 1024 * 1024
    """One request body; more is a 413."""
    head_seconds: float = 10.0
    """From the first byte of a request to the end of its headers; then 408."""
    body_seconds: float = 30.0
    """From the end of the headers to the end of the body; then 408."""
    idle_seconds: float = 75.0
    """Between two requests of one connection; then it is closed without a word."""
    stall_seconds: float = 30.0
    """How long a client may read nothing while something waits for it; then it is dropped."""
    buffered_bytes: int = 1024 * 1024
    """What waits for a client that reads slower than its stream is produced; over it the client is dropped (WebSocket: 1013)."""
    connections: int = 1024
    """Open connections; further ones get a 503."""
    message_bytes: int = 1024 * 1024
    """One WebSocket message; more closes with 1009."""
    ping_seconds: float = 20.0
    """Between two WebSocket pings; a client from which nothing came between two of them is dropped."""
    close_seconds: float = 5.0
    """For what follows a last word: a closing handshake, or a client that is still sending the body we refused."""
    refused_bytes: int = 64 * 1024 * 1024
    """How much of a refused body is read and thrown away, so that the client gets to read why."""


DEFAULT_LIMITS = Limits()
