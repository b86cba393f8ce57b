"""Tokens as bytes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from node.worker.output.vocabulary import TokenBytes


def test_byte_level_tokens_join_to_the_text(tokenizer) -> None:
    text = "Grüße, 你好 🙂 a  b\n"
    spelling = TokenBytes(tokenizer)
    assert b"".join(spelling[token] for token in tokenizer(text).input_ids).decode() == text
    assert spelling[tokenizer.eos_token_id] == b"<|end|>"
    assert spelling[511] == b""


def test_spaces_and_byte_tokens_of_sentence_pieces() -> None:
    vocabulary = {"<unk>": 0, "\u2581ab": 1, "<0xE4>": 2, "c": 3}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelling = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert [spelling[token] for token in (1, 2, 3)] == [b" ab", b"\xe4", b"c"]
