"""Why a child died, mined from how it ended and what it printed last."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMORY = re.compile(r"out of memory|OutOfMemoryError|MemoryError|cannot allocate memory|bad_alloc", re.IGNORECASE)
_PORT = re.compile(r"address already in use|EADDRINUSE|port \d+ is (already )?(in use|taken)", re.IGNORECASE)
_ERROR = re.compile(r"\b\w*(error|exception|fatal|panic|refused|failed|cannot|not found|denied)\b", re.IGNORECASE)
_ROUTINE = re.compile(r"(INFO|DEBUG)\b")
"""Says what went well, and nothing of a death."""
_LONGEST = 300


def cause_of_death(returncode: int | None, lines: Sequence[str], *, memory_ran_out: bool = False) -> str:
    """One line for people: how the process ended, the likely reason, and what to do where that is known."""
    end = _end(returncode)
    if line := _last(_MEMORY, lines):
        return f"{end}: out of memory ({line}); use a shorter --context, fewer --slots or a smaller model"
    if returncode == -signal.SIGKILL and memory_ran_out:
        return f"{end} by the kernel: the machine is out of memory; use a shorter --context, fewer --slots or a smaller model"
    if line := _last(_PORT, lines):
        return f"{end}: a port is taken ({line}); choose another --port or stop the other program"
    if line := _last(_ERROR, lines) or next((line for line in reversed(lines) if not _ROUTINE.match(line)), None):
        return f"{end}: {line[:_LONGEST]}"
    return f"{end} without a word"


def _end(returncode: int | None) -> str:
    if returncode is None:
        return "did not start"
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    found = (line for line in reversed(lines) if pattern.search(line))
    line = next(found, None)
    return line.strip()[:_LONGEST] if line else None
