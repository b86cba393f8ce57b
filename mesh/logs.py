"""Log lines on stderr: text for people, JSON for programs.

1. A line is one line: control characters of a message are escaped, because names and errors of other peers end up in messages.
2. A secret (a key, a token, a prompt, an answer) is never logged, at no level.
3. A log line that cannot be written is dropped: logging never stops a program.
4. Foreign libraries are quiet unless a level names them.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

LogFormat = Literal["text", "json"]

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# py-libp2p logs every lost connection as an error, zeroconf every lost interface as a warning; we say what matters about them.
_FOREIGN = {
    "libp2p": logging.CRITICAL,
    "multiaddr": logging.ERROR,
    "async_service": logging.CRITICAL,
    "asyncio": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx2": logging.WARNING,
    "websockets": logging.WARNING,
    "zeroconf": logging.ERROR,
}


def configure(log_format: LogFormat, levels: str, stream: TextIO | None = None) -> None:
    """Send the process's log to `stream` (default stderr). Raises ValueError as `parse_levels` does."""
    general, by_module = parse_levels(levels)
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(general)
    for name, level in {**_FOREIGN, **by_module}.items():
        named = logging.getLogger(name)
        named.setLevel(level)
        named.propagate = True  # py-libp2p cuts its own off when it is imported


def parse_levels(spec: str) -> tuple[int, dict[str, int]]:
    """Read `info,mesh.link=debug`: the general level and those of single modules. Raises ValueError, saying what is valid."""
    general = logging.INFO
    by_module: dict[str, int] = {}
    for part in spec.split(","):
        module, equals, word = part.strip().rpartition("=")
        level = LEVELS.get(word.strip().lower())
        if level is None or (equals and not module.strip()):
            raise ValueError(f"{part.strip()!r} is not a log level; give {', '.join(LEVELS)}, or MODULE=LEVEL")
        if equals:
            by_module[module.strip()] = level
        else:
            general = level
    return general, by_module


def printable(text: str) -> str:
    """The text on one line, its control characters escaped: what others wrote must not steer a terminal or forge a line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line: rule 3."""


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname.lower():<7} {record.name}: {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
