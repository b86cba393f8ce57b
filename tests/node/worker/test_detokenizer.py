"""Streams of text: joined they are the decoding, and no piece ends inside a character or gives away a stop string."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from node.worker.detokenizer import Detokenizer, StopMatcher, TextStream, token_kinds

SAMPLES = ["Grüße 🙂🚀👩‍💻!", "你好、世界。こんにちは", "plain words, two  spaces\n\nand lines", "ﬀ ẛ 𐍈 🇪🇺", " leading", ""]


def pieces_of(tokenizer: Any, ids: list[int], *stops: str) -> list[str]:
    stream = TextStream(Detokenizer(tokenizer, token_kinds(tokenizer)), stops)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", SAMPLES)
def test_text_comes_whole_and_in_whole_characters(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_come_early(tokenizer: Any) -> None:
    text = SAMPLES[2]
    ids = tokenizer(text).input_ids
    pieces = pieces_of(tokenizer, ids)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


@pytest.mark.parametrize("seed", range(20))
def test_any_ids_join_to_their_decoding(tokenizer: Any, seed: int) -> None:
    source = random.Random(seed)
    ids = [source.randrange(len(tokenizer)) for _ in range(60)]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_cut_character_ends_as_the_tokenizer_decodes_it(tokenizer: Any) -> None:
    ids = tokenizer("ok 👩").input_ids[:-1]
    assert pieces_of(tokenizer, ids)[-1].endswith("\ufffd")
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece models have it: words begin with a mark, rare characters are spelled in byte tokens."""
    words = ["<unk>", "</s>", "▁", "▁a", "b", "▁word", "s"]
    vocabulary = {name: index for index, name in enumerate(words + [f"<0x{byte:02X}>" for byte in range(256)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("seed", range(30))
def test_byte_tokens_and_leading_marks_join_to_their_decoding(seed: int) -> None:
    tokenizer = byte_fallback_tokenizer()
    source = random.Random(seed)
    spelled = [[7 + byte for byte in character.encode()] for character in "中文é🙂"]
    ids: list[int] = []
    for _ in range(30):
        ids += source.choice([[3], [5], [4, 6], [2], [1], [7 + 0xE4], source.choice(spelled)])
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_long_streams_cost_the_same_per_token(tokenizer: Any) -> None:
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            text: str = tokenizer.decode(ids, **options)
            return text

    detokenizer = Detokenizer(Counting())
    for token in tokenizer("words and words " * 50).input_ids:
        detokenizer.push(token)
    assert longest < 10


@pytest.mark.parametrize(
    ("text", "stops", "expected", "matched"),
    [
        ("one two three", ["two"], "one ", True),
        ("one two three", ["three", "two"], "one ", True),
        ("ababac tail", ["abac"], "ab", True),
        ("nothing here", ["###"], "nothing here", False),
        ("ends with ##", ["###"], "ends with ##", False),
        ("aaa", ["a"], "", True),
        ("x\n\nUser: y", ["\n\nUser:", "\n\nHuman:"], "x", True),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_stop_strings_never_leak(text: str, stops: list[str], expected: str, matched: bool, size: int) -> None:
    matcher = StopMatcher(stops)
    given = ""
    for start in range(0, len(text), size):
        given += matcher.push(text[start : start + size])
        assert expected.startswith(given)
    assert given + matcher.flush() == expected
    assert matcher.matched is matched
    assert matcher.push("more") == "" or not matched


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("the E") == "the "
    assert matcher.push("N") == ""
    assert matcher.push("!") == "EN!"
