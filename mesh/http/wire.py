"""The head of a response as bytes.

1. A name or value that could break out of its line is refused with ValueError: no handler can be made to inject a header.
2. Framing (length, chunks, connection) is the server's alone; a handler that sets it is refused too.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_OURS = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"})

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def encode_head(status: int, headers: Iterable[tuple[str, str]], framing: Iterable[tuple[str, str]]) -> bytes:
    """Status line and headers, up to and with the empty line. `headers` are checked, `framing` is ours."""
    lines = [_status_line(status), f"date: {_date(int(time.time()))}"]
    lines += [_checked(name, value) for name, value in headers]
    lines += [f"{name}: {value}" for name, value in framing]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def encode_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _checked(name: str, value: str) -> str:
    if not _NAME.fullmatch(name) or name.lower() in _OURS:
        raise ValueError(f"a response may not set the header {name!r}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"the response header {name} holds a character that headers cannot carry: {value!r}")
    return f"{name}: {value}"


@lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
