"""`mesh keys`: the file of API keys, as its operator changes it.

1. A key is told once, when it is made. The file has its hash alone.
2. A change is there as a whole or not at all, takes turns with others, and leaves a file that nobody but its owner reads.
3. What else the file says, comments included, stays as it is. A file that cannot be changed so is refused and not touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mesh.errors import Conflict, Misconfigured, NotFound
from mesh.http.keys import MAX_KEYS, Caller, callers_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mesh.http.keys import Scope

SECRET_BYTES = 32
PREFIX = "im-"
MAX_FILE = 4 * 1024 * 1024
"""Bytes; as many keys as there can be take less than half."""
_ANY_TABLE = re.compile(r"\s*\[")
_KEY_TABLE = re.compile(r"\s*\[\[\s*(?:key|\"key\"|'key')\s*\]\]")

Callers = dict[str, Caller]
"""By hash."""


class KeyFile:
    """A file for `--api-keys`. Every method raises Misconfigured when the file is no such, or cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def callers(self) -> list[Caller]:
        """The keys in it, in its order."""
        return list(callers_in(self._read(), self._path).values())

    def add(self, name: str, scopes: Sequence[Scope]) -> str:
        """Make a key, in a new file where there is none: the key itself. Raises Conflict when the name is taken."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        caller = Caller(name, hashlib.sha256(secret.encode()).hexdigest(), tuple(dict.fromkeys(scopes)))
        callers_in(_with("", caller), self._path)  # The name is checked before anything is locked.
        with self._turn():
            text = self._read() if self._path.exists() else ""
            before = callers_in(text, self._path)
            if any(name == other.name for other in before.values()):
                raise Conflict(f"{self._path} has a key {name!r} already; revoke it first, or choose another name")
            if len(before) >= MAX_KEYS:
                raise Conflict(f"{self._path} has {MAX_KEYS} keys, the most there can be; revoke one first")
            self._change(_with(text, caller), {**before, caller.hash: caller})
        return secret

    def revoke(self, name: str) -> int:
        """Take a key out: how many are left. Raises NotFound."""
        with self._turn():
            text = self._read()
            before = callers_in(text, self._path)
            places = [place for place, caller in enumerate(before.values()) if caller.name == name]
            if not places:
                known = ", ".join(caller.name for caller in before.values())
                raise NotFound(f"{self._path} has no key {name!r}; there are: {known or 'none'}", code="key_not_found")
            after = {digest: caller for digest, caller in before.items() if caller.name != name}
            self._change(_without(text, places[0]), after)
        return len(after)

    def _change(self, text: str, meant: Callers) -> None:
        """Write the text, if it says what is meant."""
        try:
            says = callers_in(text, self._path)
        except Misconfigured:
            says = {}
        if _told(says) != _told(meant):
            raise Misconfigured(
                f"{self._path} is written in a way that `mesh keys` cannot change; write its keys as [[key]] tables, or edit it"
            )
        self._write(text)

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                read = file.read(MAX_FILE + 1)
            text = read.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise Misconfigured(f"cannot read the keys in {self._path}: {reason}; check --api-keys") from error
        if len(read) > MAX_FILE:
            raise Misconfigured(f"{self._path} is larger than {MAX_FILE} bytes, which no file of keys is; check --api-keys")
        return text

    def _write(self, text: str) -> None:
        path = self._path.resolve()
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                with suppress(FileNotFoundError, PermissionError):  # A service's own file stays its own.
                    os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise Misconfigured(f"cannot write {path}: {error.strerror}; make room or check the owner of its folder") from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the file's folder against other changes."""
        folder = self._path.resolve().parent
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Misconfigured(f"cannot use the folder {folder}: {error.strerror}; make it, or check --api-keys") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Conflict(f"another program changes the keys in {folder} just now; try again") from error
        finally:
            os.close(lock)


def _told(callers: Callers) -> list[tuple[str, str, tuple[Scope, ...]]]:
    return [(digest, caller.name, caller.scopes) for digest, caller in callers.items()]


def _with(text: str, caller: Caller) -> str:
    scopes = ", ".join(f'"{scope}"' for scope in caller.scopes)
    table = f'[[key]]\nname = {json.dumps(caller.name, ensure_ascii=False)}\nhash = "sha256:{caller.hash}"\nscopes = [{scopes}]\n'
    return f"{text.rstrip()}\n\n{table}" if text.strip() else table


def _without(text: str, place: int) -> str:
    """The text without the key table of that place; comments on lines of their own stay, and what follows it."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if _KEY_TABLE.match(line)]
    if place >= len(starts):
        return ""
    start = starts[place]
    end = next((number for number in range(start + 1, len(lines)) if _ANY_TABLE.match(lines[number])), len(lines))
    last = max(number for number in range(start, end) if _says_something(lines[number]))
    comments = [line for line in lines[start : last + 1] if line.lstrip().startswith("#")]
    return "".join(lines[:start] + comments + lines[last + 1 :])


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")
