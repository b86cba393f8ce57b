"""The bytes that a token stands for, whatever way its tokenizer spells it."""

from __future__ import annotations

from functools import cache
from typing import Any

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""
_BYTE_TOKEN_LENGTH = len("<0x00>")


class TokenBytes:
    """Looks tokens up; those outside the tokenizer's vocabulary have no bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special: dict[int, str] = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        self._byte_level = "ByteLevel" in repr(decoder)
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> bytes:
        if token in self._special:
            return self._special[token].encode()
        spelled: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if spelled is None:
            return b""
        if self._byte_level and all(letter in _bytes_by_letter() for letter in spelled):
            return bytes(_bytes_by_letter()[letter] for letter in spelled)
        if spelled.startswith("<0x") and len(spelled) == _BYTE_TOKEN_LENGTH:
            return bytes([int(spelled[3:5], 16)])
        return spelled.replace(_SPACE, " ").encode(errors="replace")


@cache
def _bytes_by_letter() -> dict[str, int]:
    """Byte-level vocabularies write each byte as a printable letter: itself, or the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
