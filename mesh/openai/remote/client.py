"""Talks to OpenAI-compatible servers over HTTP.

1. Foreign exceptions and status codes become errors of ours here, by `_REASONS` and `refusal`.
2. Whatever a server sends is bounded: `MAX_MODELS_BODY`, `MAX_ERROR_BODY`, `MAX_REPLY`, and `MAX_LINE` of a stream.
3. Cancelling a request closes its connection, which tells the server to stop.
4. Redirects are not followed, and proxies of the environment are not used: whoever configured the server named it.
5. Secrets are in the headers of requests and nowhere else: no error, no log line and no `repr` has it.
6. An answer is read no faster than its reader takes it (`mesh.service.room`).
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import msgspec
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, MeshError, NotFound, TimedOut, Unavailable
from mesh.messages.inference import Accepted
from mesh.openai.remote.answer import Answer, error_text
from mesh.openai.remote.continuing import FINAL_MESSAGE, behind
from mesh.openai.remote.embeddings import embeddings_body, embeddings_done
from mesh.openai.remote.pieces import estimated_tokens
from mesh.openai.remote.wishes import check_wishes, wishes_of
from mesh.openai.types import CHAT_DEFAULTS, COMPLETION_DEFAULTS
from mesh.service import room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0
"""Dispatch has stricter limits; this one is for whoever asks without them."""
LINGER_SECONDS = 0.5
"""For the end of an answer that has said all: the connection can then be used again."""
IDLE_SECONDS = 3.0
"""Connections that are not used for so long are closed. Many servers close them after 5 s: a request must not meet that."""
MAX_MODELS_BODY = 1024 * 1024
MAX_ERROR_BODY = 64 * 1024
MAX_REPLY = 8 * 1024 * 1024
MAX_VECTORS = 16 * 1024 * 1024
"""Embeddings as text; what they are as numbers is bounded apart."""
MAX_CONNECTIONS = 1024
VIA = "x-infermesh-via"
"""Names the gateway that a request comes through, so that a mesh that was registered with itself is found out."""

_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_REASONS: dict[type[Exception], tuple[type[MeshError], str, str]] = {
    httpx2.ConnectTimeout: (BackendFailed, "service_unreachable", "does not answer the connection"),
    httpx2.ConnectError: (BackendFailed, "service_unreachable", "cannot be reached"),
    httpx2.PoolTimeout: (Busy, "busy", "has too many requests under way"),
    httpx2.TimeoutException: (TimedOut, "engine_timeout", f"was silent for {SILENCE_SECONDS:g} s"),
    httpx2.HTTPError: (BackendFailed, "service_lost", "broke the connection"),
}


class RemoteModel(msgspec.Struct, frozen=True):
    """A model as a server lists it."""

    id: str
    created: int = 0
    context_length: int = 0


class Incoming(Protocol):
    """An answer that is put together from bytes; `mesh.openai.remote.answer` has one."""

    complete: bool

    def feed(self, data: bytes) -> None:
        """Bytes of an event stream. Raises MeshError."""
        ...

    def take_whole(self, body: bytes) -> None:
        """The body of an answer in one piece. Raises MeshError."""
        ...

    def end(self) -> None:
        """Nothing more comes. Raises MeshError when the answer is not whole."""
        ...


class RemoteClient:
    """One pool of connections. `via` is our peer id, `secrets` headers that let us in: for servers of one owner only."""

    def __init__(self, *, via: str = "", secrets: Mapping[str, str] | None = None) -> None:
        self._has_key = bool(secrets)
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64, keepalive_expiry=IDLE_SECONDS),
            headers={"accept-encoding": "identity", **({VIA: via} if via else {}), **(secrets or {})},
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def infer(self, base: str, request: InferenceRequest, emit: Emit, *, avoid: Collection[str] = ()) -> None:
        """Run one request on the server at `base`, which does not understand the names in `avoid`. Raises MeshError."""
        if request.task == "embedding":
            await self._embed(base, request, emit)
            return
        check_wishes(request)
        await self.exchange(base + _path(request), body_of(request, avoid=avoid), Answer(request, emit), emit)

    async def exchange(self, url: str, body: dict[str, Any], answer: Incoming, emit: Emit) -> None:
        """Post a request and put what comes back together in `answer`, which emits by `emit`. Raises MeshError."""
        async with self._post(url, body) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read(response, MAX_ERROR_BODY, cut=True))
            emit(Accepted(running=1))
            if response.headers.get("content-type", "").startswith("application/json"):
                answer.take_whole(await _read(response, MAX_REPLY))
            else:
                await _follow(response, answer, emit)
        answer.end()

    async def _embed(self, base: str, request: InferenceRequest, emit: Emit) -> None:
        began = trio.current_time()
        async with self._post(f"{base}/v1/embeddings", embeddings_body(request)) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read(response, MAX_ERROR_BODY, cut=True))
            emit(Accepted(running=1))
            body = await _read(response, MAX_VECTORS)
        emit(embeddings_done(request, body, seconds=trio.current_time() - began))

    async def models(self, base: str) -> list[RemoteModel]:
        """What the server serves: `/v1/models`, else `/models`. No limit of time of its own. Raises MeshError."""
        for path in ("/v1/models", "/models"):
            async with self._get(base + path) as response:
                if response.status_code == 200:
                    return _models(await _read(response, MAX_MODELS_BODY))
                if response.status_code in (401, 403):
                    raise self._refusal(response, b"")
                status = response.status_code
        raise BackendFailed(f"the service answers {status} to /v1/models and /models", code="no_models")

    async def healthy(self, url: str) -> bool:
        """Whether a health page answers well. Raises MeshError when nothing answers."""
        async with self._get(url) as response:
            return bool(response.is_success)

    async def fetch(self, url: str) -> bytes:
        """What is there, at most MAX_MODELS_BODY bytes of it. No limit of time of its own. Raises MeshError."""
        async with self._get(url) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read(response, MAX_ERROR_BODY, cut=True))
            return await _read(response, MAX_MODELS_BODY)

    async def post(self, url: str) -> None:
        """Ask for something that has no body and no answer, and wait until it is done. Raises MeshError."""
        async with self._ask(self._http.build_request("POST", url)) as response:
            if not response.is_success:
                raise self._refusal(response, await _read(response, MAX_ERROR_BODY, cut=True))

    def _refusal(self, response: httpx2.Response, body: bytes) -> MeshError:
        return refusal(response, body, has_key=self._has_key)

    def _post(self, url: str, body: dict[str, Any]) -> Any:
        request = self._http.build_request("POST", url, content=_json(body), headers={"content-type": "application/json"})
        return self._ask(request)

    def _get(self, url: str) -> Any:
        return self._ask(self._http.build_request("GET", url))

    @asynccontextmanager
    async def _ask(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        try:
            response = await self._http.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            raise _broken(error) from error


async def _follow(response: httpx2.Response, answer: Incoming, emit: Emit) -> None:
    def take(data: bytes) -> bool:
        answer.feed(data)
        return answer.complete

    await _pour(response, take, emit)


async def _read(response: httpx2.Response, limit: int, *, cut: bool = False) -> bytes:
    body = bytearray()

    def take(data: bytes) -> bool:
        body.extend(data)
        if len(body) > limit and not cut:
            raise BackendFailed(f"the service answered with more than {limit} bytes", code="bad_answer")
        return len(body) > limit

    await _pour(response, take)
    return bytes(body[:limit])


async def _pour(response: httpx2.Response, take: Callable[[bytes], bool], emit: Emit | None = None) -> None:
    """Hand every piece of the body to `take` until it says that it has enough; the connection then gets LINGER_SECONDS to end.

    Stopping early cancels the reading instead of leaving the loop: the library's generators would stay behind half read.
    """
    enough, failure = False, None
    with trio.CancelScope() as scope:
        async for data in response.aiter_bytes():
            if enough:
                continue
            try:
                enough = take(data)
            except MeshError as error:
                enough, failure = True, error
                scope.cancel()
            if enough:
                scope.deadline = trio.current_time() + LINGER_SECONDS
            elif emit is not None:
                await room(emit)
    if failure is not None:
        raise failure


def _path(request: InferenceRequest) -> str:
    return _PATHS[request.task]


AVOIDABLE = ("top_k", "max_tokens", "temperature", "top_p", "seed", "stream_options")
"""What some servers refuse although their client asked for nothing special: they can be left out or said otherwise."""


def refused_name(error: BadRequest) -> str | None:
    """Which of AVOIDABLE the server does not understand; None when the error is about something else."""
    said = f"{error.param} {error.message}"
    return next((name for name in AVOIDABLE if name in said), None)


def body_of(request: InferenceRequest, *, avoid: Collection[str] = ()) -> dict[str, Any]:
    """The request in OpenAI's shape. What is in `avoid` is left out, unless the client really asked for it."""
    request = behind(request)
    body: dict[str, Any] = {
        "model": request.model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"messages": request.messages} if request.task == "chat" else {"prompt": request.prompt}
    if request.stop:
        body["stop"] = request.stop
    if (limit := _limit(request)) is not None:
        body["max_completion_tokens" if "max_tokens" in avoid else "max_tokens"] = limit
    body |= wishes_of(request)
    if request.said is not None and request.task == "chat":
        body |= FINAL_MESSAGE
    return {name: value for name, value in body.items() if name not in avoid or _is_asked_for(request, name)}


def _is_asked_for(request: InferenceRequest, name: str) -> bool:
    """Whether a sampling parameter differs from what stands for what a client leaves out."""
    defaults = CHAT_DEFAULTS if request.task == "chat" else COMPLETION_DEFAULTS
    return name in ("temperature", "top_p") and getattr(request, name) != getattr(defaults, name)


def _json(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a surrogate pair, as JSON may escape it
        return json.dumps(body).encode()


def _limit(request: InferenceRequest) -> int | None:
    """New tokens at most. Where prompt and answer together are limited, the prompt's length is an estimate."""
    limits = [request.max_tokens] if request.max_tokens is not None else []
    if request.max_length is not None:
        limits.append(max(1, request.max_length - estimated_tokens(request)))
    return min(limits, default=None)


class _Listed(msgspec.Struct):
    id: str
    created: int | float | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Listed]


def _models(body: bytes) -> list[RemoteModel]:
    try:
        listed = msgspec.json.decode(body, type=_Models).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendFailed("the service's list of models is not in OpenAI's shape", code="no_models") from error
    if not listed:
        raise BackendFailed("the service lists no model yet", code="no_models")
    return [
        RemoteModel(model.id, int(model.created or 0), model.max_model_len or 0)
        for model in listed
        if 0 < len(model.id) <= 200 and model.id.isprintable()
    ]


def refusal(response: httpx2.Response, body: bytes, *, has_key: bool = False) -> MeshError:
    """The error that the server's answer stands for. What it says of the request is passed on, for the client to act on."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = None
    error = _error_of(said) if isinstance(said, dict) else None
    text = error_text(error)
    param, code = (_word(error, "param"), _word(error, "code")) if isinstance(error, dict) else (None, None)
    match response.status_code:
        case 401 | 403:
            advice = "check the key that it was given" if has_key else "it wants a key, and was given none"
            return BackendFailed(f"the service refuses us: {advice}", code="service_denied")
        case 404:
            return NotFound(f"the service does not have the model: {text}", code="model_not_found", param="model")
        case 408 | 504:
            return TimedOut(f"the service ran out of time: {text}")
        case 429:
            return Busy(f"the service is full: {text}", retry_after=_retry_after(response))
        case 503:
            return Unavailable(f"the service is not available: {text}", retry_after=_retry_after(response))
        case status if 400 <= status < 500:
            return BadRequest(text, code=code or "invalid_request", param=param, status=status)
        case status:
            return BackendFailed(f"the service failed with status {status}", code="service_failed")


def _error_of(said: dict[str, Any]) -> Any:
    """OpenAI's `error`, or FastAPI's `detail`: a text, or what is wrong with each field."""
    error = said.get("error") or said.get("detail") or said
    if not isinstance(error, list):
        return error
    first = error[0] if isinstance(error[0], dict) else {}
    places = first.get("loc")
    param = str(places[-1]) if isinstance(places, list) and places else None
    return {"message": f"{param}: {first.get('msg')}" if param else first.get("msg"), "param": param}


def _word(error: dict[str, Any], name: str) -> str | None:
    value = error.get(name)
    return value[:100] if isinstance(value, str) and value else None


def _retry_after(response: httpx2.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else None


def _broken(error: httpx2.HTTPError) -> MeshError:
    kind, code, what = next(reason for foreign, reason in _REASONS.items() if isinstance(error, foreign))
    return kind(f"the service {what}", code=code)
