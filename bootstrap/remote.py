"""A gateway, as the operator's commands talk to it.

1. Every failure is a MeshError whose message says what to do: nobody answers, somebody else answers, the gateway says no.
2. Every wait is bounded: `CONNECT` to connect, `ANSWER` for an answer, `SILENCE` between two pieces of a stream.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import trio

from mesh.errors import BackendFailed, BadRequest, MeshError, Misconfigured, TimedOut, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DEFAULT_GATEWAY = "http://127.0.0.1:8000"

CONNECT = 5.0
ANSWER = 10.0
SILENCE = 120.0
"""Longer than a gateway's own limit for a first token, so that its error arrives."""

Json = dict[str, Any]


def gateway_url(text: str) -> str:
    """The URL without its trailing slash; `host:port` will do. Raises Misconfigured."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Misconfigured(f"--gateway: {text!r} is not a URL; it looks like {DEFAULT_GATEWAY}")
    return url.rstrip("/")


class Gateway:
    """The HTTP side of one gateway."""

    def __init__(self, url: str) -> None:
        self.url = gateway_url(url)

    async def get(self, path: str, **query: str) -> Json:
        """The JSON object at a path. Raises MeshError."""
        async with self._client(ANSWER) as client:
            answer = await client.get(path, params=query)
            body = _object(answer.content)
            if answer.is_error or body is None:
                raise self._refusal(answer.status_code, body)
            return body

    async def models(self) -> list[Json]:
        """What the mesh serves. Raises MeshError."""
        found = (await self.get("/v1/models")).get("data")
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    async def chat(self, model: str, messages: list[Json], on_text: Callable[[str], None]) -> None:
        """Stream one answer; `on_text` gets every piece. Cancelling it stops the answer. Raises MeshError."""
        body = {"model": model, "messages": messages, "stream": True}
        async with self._client(SILENCE) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.is_error:
                raise self._refusal(answer.status_code, _object(await answer.aread()))
            failure: MeshError | None = BackendFailed("the answer broke off before its end; ask again", code="stream_interrupted")
            with trio.CancelScope() as reading:
                async for line in answer.aiter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if reading.cancel_called or not data:
                        continue
                    chunk = _object(data.encode())
                    if chunk is not None and "error" not in chunk:
                        on_text(_text(chunk))
                        continue
                    failure = None if data == "[DONE]" else self._refusal(502, chunk)
                    # Leaving the loop would leave httpx2's nested generators half read, which trio complains about.
                    reading.cancel()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _client(self, silence: float) -> AsyncIterator[httpx2.AsyncClient]:
        limits = httpx2.Timeout(silence, connect=CONNECT)
        try:
            # A mesh is on this machine or in its network: a proxy for the web would only be in the way.
            async with httpx2.AsyncClient(base_url=self.url, timeout=limits, trust_env=False) as client:
                yield client
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unavailable(
                f"no gateway answers at {self.url}; start one with `mesh up` or `mesh-gateway`, or name one with --gateway URL",
                code="no_gateway",
            ) from error
        except httpx2.TimeoutException as error:
            raise TimedOut(f"the gateway at {self.url} was silent for {silence:g} s; look at its log") from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"the connection to {self.url} broke: {str(error) or type(error).__name__}; try again") from error

    def _refusal(self, status: int, body: Json | None) -> BadRequest | Unavailable:
        error = body.get("error") if body else None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            return Unavailable(f"what answers at {self.url} is not a gateway of infermesh (status {status}); check --gateway")
        kind = BadRequest if status < 500 else Unavailable
        return kind(error["message"], status=status, code=str(error.get("code")))


def _text(chunk: Json) -> str:
    match chunk.get("choices"):
        case [{"delta": {"content": str(text)}}, *_]:
            return text
        case _:
            return ""


def _object(content: bytes) -> Json | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
