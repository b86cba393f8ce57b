"""API keys: who may ask, and for what.

1. A file names keys by the SHA-256 of each, never the keys themselves; errors and logs have neither.
2. A caller shows its key as `Authorization: Bearer KEY`, or as `x-api-key`. The key's name is its tenant.
3. A scope is what a key is good for: `infer` to ask models, `admin` to change something; neither implies the other, and any key
   may read.
4. What says only that a program lives (`OPEN`) asks for no key; whatever else there is needs one, unknown paths included.
5. The file is looked at again every second in which somebody asks: a key that was revoked is good no longer. A file that is
   broken or gone changes nothing and is logged, once; one without keys lets nobody in.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import tomllib
from typing import TYPE_CHECKING, Literal

import msgspec

from mesh.errors import Denied, Misconfigured
from mesh.http.router import Router

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.http.message import AnyResponse, Request

logger = logging.getLogger(__name__)

Scope = Literal["infer", "admin"]

OPEN = frozenset({"/health", "/ready"})
MAX_KEYS = 10_000
MAX_NAME = 64
LOOK_EVERY = 1.0
"""Seconds between two looks at the file, while somebody asks."""
_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Caller(msgspec.Struct, frozen=True):
    """One key of the file."""

    name: str
    hash: str
    """SHA-256 in hexadecimal, with or without `sha256:` before it."""
    scopes: tuple[Scope, ...] = ("infer",)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: list[Caller] = []


class Keys:
    """The keys that a program takes."""

    def __init__(self, callers: Mapping[str, Caller], *, path: Path | None = None) -> None:
        """By hash, in lower-case hexadecimal; read again from `path` when that changes."""
        self._callers = dict(callers)
        self._path = path
        self._stamp = _stamp(path) if path is not None else None
        self._look_at = time.monotonic() + LOOK_EVERY

    @classmethod
    def read(cls, path: Path) -> Keys:
        """The keys in a TOML file of `[[key]]` tables with `name`, `hash` and `scopes`. Raises Misconfigured."""
        found = _load(path)
        if not found:
            raise Misconfigured(f"{path} has 0 keys; it must have 1 to {MAX_KEYS}, each a [[key]]: mesh keys add NAME makes one")
        return cls(found, path=path)

    def caller(self, request: Request) -> Caller:
        """Who asks. Raises Denied."""
        self._look_again()
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not key:
            raise Denied("this needs an API key: send it as Authorization: Bearer KEY", code="missing_api_key")
        caller = self._callers.get(hashlib.sha256(key.encode(errors="replace")).hexdigest())
        if caller is None:
            raise Denied("this API key is not known here; ask the operator for one", code="invalid_api_key")
        return caller

    def require(self, request: Request, scope: Scope) -> Caller:
        """Who asks, with this scope. Raises Denied."""
        caller = self.caller(request)
        if scope not in caller.scopes:
            raise Denied(f"this API key is not good for {scope}; use one that has that scope", status=403, code="missing_scope")
        return caller

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._path is None or now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._callers = _load(self._path)
        except Misconfigured as error:
            logger.error("%s; the keys of before stay good", error.message)  # noqa: TRY400 - the message says it all
        else:
            logger.info("%s has changed: %d keys", self._path, len(self._callers))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(path: Path) -> dict[str, Caller]:
    try:
        return callers_in(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Misconfigured(f"cannot read the keys in {path}: {reason}; check --api-keys") from error


def callers_in(text: str, path: Path) -> dict[str, Caller]:
    """The keys that a file holds, by hash in lower-case hexadecimal, in its order. Raises Misconfigured, which names `path`."""
    try:
        found = msgspec.convert(tomllib.loads(text), _File).key
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise Misconfigured(f"{path} is not a file of keys: {error}; each [[key]] has name, hash and scopes") from error
    if len(found) > MAX_KEYS:
        raise Misconfigured(f"{path} has {len(found)} keys; it must have 1 to {MAX_KEYS}, each a [[key]]")
    callers: dict[str, Caller] = {}
    for caller in found:
        _add(callers, caller, path)
    return callers


def _add(callers: dict[str, Caller], caller: Caller, path: Path) -> None:
    found = _HASH.fullmatch(caller.hash.lower())
    if found is None:
        raise Misconfigured(
            f"{path}: the hash of {caller.name!r} is not a SHA-256; make it with `mesh keys add`, or: printf %s KEY | sha256sum"
        )
    if not caller.name.isprintable() or not 0 < len(caller.name) <= MAX_NAME:
        raise Misconfigured(f"{path}: {caller.name[:MAX_NAME]!r} is not a name; give 1 to {MAX_NAME} printable characters")
    if any(caller.name == other.name for other in callers.values()):
        raise Misconfigured(f"{path}: {caller.name!r} is there twice; give each key its own name")
    if found[1] in callers:
        raise Misconfigured(f"{path}: {caller.name!r} and {callers[found[1]].name!r} are one key; make another")
    callers[found[1]] = caller


class Guard:
    """What stands before the routes of one port."""

    def __init__(self, keys: Keys, *, administrative: bool = False) -> None:
        """`administrative`: the port is about the program itself; no models are asked there."""
        self._keys = keys
        self._administrative = administrative

    def check(self, request: Request) -> None:
        """Let it pass, with its tenant filled in. Raises Denied."""
        if request.path in OPEN or request.method == "OPTIONS":
            return
        scope = self._scope(request)
        caller = self._keys.require(request, scope) if scope else self._keys.caller(request)
        request.tenant = caller.name

    def _scope(self, request: Request) -> Scope | None:
        """What it takes; None: any key."""
        if not self._administrative and request.path.startswith(("/v1/", "/ws/")) and not request.path.startswith("/v1/mesh/"):
            return "infer"
        return None if request.method in _READING else "admin"


class KeyedRouter(Router):
    """A router behind a guard; without one it is a router like any other."""

    guard: Guard | None = None

    async def answer(self, request: Request) -> AnyResponse:
        """As `Router`. Raises Denied as well."""
        if self.guard is not None:
            self.guard.check(request)
        return await super().answer(request)
