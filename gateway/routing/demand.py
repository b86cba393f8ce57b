"""What a request asks of a node, as far as a gateway can tell without a tokenizer.

1. Sizes are hints: four bytes count as one token, and nobody is refused for a hint alone.
2. Prefix blocks are keyed hashes of the text before them and of their own, beginning with the tenant and the model: equal
   blocks mean equal text from the very start, and nothing of one tenant matches another's.
3. At most `MAX_BLOCKS` blocks are made, whatever the length of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from mesh.errors import BadRequest
from mesh.messages.inference import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.messages.inference import InferenceRequest, Task

DEFAULT_OUTPUT_TOKENS = 128
"""What a request is expected to generate while nothing is known of its model."""
BYTES_PER_TOKEN = 4
BLOCK = 512
"""Characters of text in one prefix block."""
BLOCK_TOKENS = BLOCK // BYTES_PER_TOKEN
MAX_BLOCKS = 256
DIGEST = 12
"""Bytes of a hash: enough that two texts never meet by chance."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One request's size and kin. `output_limit`: what the client allows; None: it did not say."""

    task: Task = "chat"
    prompt_tokens: int = 0
    output_limit: int | None = None
    affinity: bytes = b""
    client: bytes = b""
    """Where it came from; counts where nothing better says what it belongs to."""
    blocks: tuple[bytes, ...] = ()
    behind_text: bool = False
    """It goes on with an answer of which only the text is known."""


def demand_of(request: InferenceRequest) -> Demand:
    """Size a request by the length of its texts."""
    root = _hash(b"", f"{request.tenant}\0{request.model}")
    return Demand(
        task=request.task,
        prompt_tokens=_text_bytes(request) // BYTES_PER_TOKEN,
        output_limit=request.max_tokens,
        affinity=_hash(root, request.affinity) if request.affinity else b"",
        client=_hash(root, f"\0{request.client}") if request.client else b"",
        blocks=tuple(_blocks(root, request)),
    )


def asked_demand(query: Mapping[str, str]) -> Demand:
    """The demand that a question about routing describes: `prompt_tokens`, `max_tokens`, `prompt_cache_key` or `user`.

    Raises BadRequest for a size that is none.
    """
    key = query.get("prompt_cache_key") or query.get("user") or ""
    root = _hash(b"", f"{ANONYMOUS}\0{query.get('model', '')}")
    return Demand(
        prompt_tokens=_size(query, "prompt_tokens") or 0,
        output_limit=_size(query, "max_tokens"),
        affinity=_hash(root, key) if key else b"",
    )


def _size(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadRequest(f"{name}={text[:32]!r} is no number of tokens; give 0 or more", param=name)
    return int(text)


def _text_bytes(request: InferenceRequest) -> int:
    if isinstance(request.prompt, list):
        return len(request.prompt) * BYTES_PER_TOKEN
    ids = sum(len(one) for one in request.inputs or [] if not isinstance(one, str))
    return sum(map(len, _texts(request))) + ids * BYTES_PER_TOKEN


def _texts(request: InferenceRequest) -> list[str]:
    texts = [request.prompt] if isinstance(request.prompt, str) else [one for one in request.inputs or [] if isinstance(one, str)]
    return texts + [str(message.get("content") or "") for message in request.messages or []]


def _blocks(root: bytes, request: InferenceRequest) -> Iterator[bytes]:
    """Hashes of the text up to the end of each block; the last, unfinished one is left out: it is the one that differs."""
    if isinstance(request.prompt, list):
        pieces = [",".join(map(str, request.prompt[: MAX_BLOCKS * BLOCK_TOKENS]))]
    elif request.messages:
        pieces = [f"{message.get('role')}\0{message.get('content') or ''}\0" for message in request.messages[:MAX_BLOCKS]]
    else:
        pieces = _texts(request)[:1]
    made, digest, rest = 0, root, ""
    for piece in pieces:
        rest += piece[: (MAX_BLOCKS + 1) * BLOCK]
        while len(rest) >= BLOCK and made < MAX_BLOCKS:
            digest, rest = _hash(digest, rest[:BLOCK]), rest[BLOCK:]
            made += 1
            yield digest


def _hash(before: bytes, text: str) -> bytes:
    return blake2b(before + text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()
