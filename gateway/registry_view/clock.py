"""The time as the older registry writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """Now, ISO 8601 in UTC. For people: nothing here compares wall clocks."""
    return datetime.now(UTC).isoformat()
