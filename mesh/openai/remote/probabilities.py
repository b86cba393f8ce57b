"""Probabilities of tokens as an OpenAI-compatible server tells them: one shape for chat, an older one for completions."""

from __future__ import annotations

import msgspec

from mesh.messages.inference import Alternative, TokenLogprob


class _Scored(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[_Scored] = []


class ChoiceLogprobs(msgspec.Struct):
    """What a choice says of its tokens: `content` for chat, the other three for completions."""

    content: list[_Scored] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


def token_logprobs(said: ChoiceLogprobs | None) -> list[TokenLogprob]:
    """The same in our shape; empty when nothing was said."""
    if said is None:
        return []
    if said.content is not None:
        return [
            TokenLogprob(_bytes(each), each.logprob, [_alternative(top) for top in each.top_logprobs]) for each in said.content
        ]
    tokens, chances, tops = said.tokens or [], said.token_logprobs or [], said.top_logprobs or []
    return [
        TokenLogprob(token.encode(errors="replace"), chance or 0.0, _tops(tops[index] if index < len(tops) else None))
        for index, (token, chance) in enumerate(zip(tokens, chances, strict=False))
    ]


def _tops(said: dict[str, float] | None) -> list[Alternative]:
    ranked = sorted((said or {}).items(), key=lambda item: -item[1])
    return [Alternative(token.encode(errors="replace"), chance) for token, chance in ranked]


def _alternative(scored: _Scored) -> Alternative:
    return Alternative(_bytes(scored), scored.logprob)


def _bytes(scored: _Scored) -> bytes:
    if scored.bytes is not None and all(0 <= byte < 256 for byte in scored.bytes):
        return bytes(scored.bytes)
    return scored.token.encode(errors="replace")
