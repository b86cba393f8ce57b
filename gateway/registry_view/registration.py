"""What a foreign service says of itself over HTTP, checked.

1. Every field is bounded; a fault is a BadRequest that names the field. Unknown fields are ignored, as older registries did.
2. `url` is plain http or https without credentials: it is shown to everybody who may read the list.
3. A service is *routable* when it is an `openai-api` (or says nothing of its type) and no supervisor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from mesh.http import Request

MAX_METADATA = 16 * 1024
"""Bytes of JSON."""
ROUTABLE_TYPE: Final = "openai-api"
DOWN = frozenset(("stopped", "stopping", "starting", "initializing", "failed", "error", "crashed", "unhealthy", "offline"))
"""What a service says of itself when it cannot take requests; any other status is good news."""
_HOST = re.compile(r"[A-Za-z0-9._:\[\]%-]+")
_FAULT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
_Status = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Metadata = dict[str, Any]


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A foreign service as it registered."""

    name: str
    host: str
    port: int
    hostname: str
    url: str
    status: str
    metadata: Metadata = {}

    @property
    def base(self) -> str:
        """The URL that `/v1/...` is put behind."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def routable(self) -> bool:
        """True when its models can be asked for."""
        return self.metadata.get("type", ROUTABLE_TYPE) == ROUTABLE_TYPE and not self.is_supervisor

    @property
    def is_supervisor(self) -> bool:
        """True for a supervisor that registered itself."""
        return self.metadata.get("babysitter") == "enhanced"

    @property
    def babysitter_url(self) -> str | None:
        """Where its supervisor says how it does, at P+1; None when it has none."""
        given = self.metadata.get("babysitter_url")
        if isinstance(given, str) and _is_url(given):
            return given.rstrip("/")
        watched = self.metadata.get("babysitter") or self.metadata.get("parent_service")
        if not watched or self.is_supervisor or self.port == 65535:
            return None
        return _url_of(self.host, self.port + 1)

    @property
    def weight(self) -> float:
        """For weighted routing."""
        given = self.metadata.get("weight", 1.0)
        sane = isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= 1000
        return float(given) if sane else 1.0


class _Post(msgspec.Struct, kw_only=True):
    name: _Name
    host: _Host
    port: _Port
    hostname: _Host | None = None
    url: _Url | None = None
    status: _Status = "running"
    metadata: Metadata | None = None


class _Put(msgspec.Struct, kw_only=True):
    host: _Host | None = None
    port: _Port | None = None
    hostname: _Host | None = None
    url: _Url | None = None
    status: _Status | None = None
    metadata: Metadata | None = None


class _Beat(msgspec.Struct, kw_only=True):
    status: _Status | None = None


def read_registration(request: Request) -> Registration:
    """The body of `POST /services`. Raises BadRequest."""
    body = _decode(request.body, _Post)
    return _checked(
        Registration(
            name=body.name,
            host=body.host,
            port=body.port,
            hostname=body.hostname or body.host,
            url=body.url or _url_of(body.host, body.port),
            status=body.status,
            metadata=body.metadata or {},
        )
    )


def read_change(request: Request, known: Registration) -> Registration:
    """The registration after `PUT /services/{name}`. A new host or port without a URL makes a new URL. Raises BadRequest."""
    body = _decode(request.body, _Put)
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    if given.keys() & {"host", "port"} and "url" not in given:
        given["url"] = _url_of(body.host or known.host, body.port or known.port)
    return _checked(msgspec.structs.replace(known, **given))


def read_beat(request: Request) -> str | None:
    """The status in the body of a heartbeat, if it says one; an empty body is fine. Raises BadRequest."""
    return _decode(request.body, _Beat).status if request.body.strip() else None


T = TypeVar("T")


def _decode(data: bytes, kind: type[T]) -> T:
    if not data.strip():
        raise BadRequest("the body is empty; send a JSON object", code="invalid_json")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _fault(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error


def _fault(message: str) -> BadRequest:
    found = _FAULT.match(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    if missing := _MISSING.search(what):
        return BadRequest(f"{missing[1]} is required", param=missing[1])
    if not path:
        return BadRequest(f"the body must be a JSON object: {what}")
    return BadRequest(f"{path}: {what[0].lower()}{what[1:]}", param=path)


def _checked(registration: Registration) -> Registration:
    name = registration.name
    if not name.isprintable() or name != name.strip() or "/" in name:
        raise BadRequest("name must be printable, without slashes and without spaces at its ends", param="name")
    if not _HOST.fullmatch(registration.host):
        raise BadRequest("host must be a name or an IP address", param="host")
    for field in ("hostname", "status"):
        if not getattr(registration, field).isprintable():
            raise BadRequest(f"{field} must be printable", param=field)
    if not _is_url(registration.url):
        raise BadRequest("url must look like http://host:port or https://host, without user, query or fragment", param="url")
    if len(msgspec.json.encode(registration.metadata)) > MAX_METADATA:
        raise BadRequest(f"metadata has more than {MAX_METADATA} bytes", param="metadata")
    return registration


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        httpx2.URL(text)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx2.InvalidURL):
        return False
    extra = parts.username is not None or parts.password is not None or parts.query or parts.fragment
    return named and not extra and text.isascii() and text.isprintable() and " " not in text


def _url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"
