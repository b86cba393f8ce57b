"""Training batches: conversations as token ids, with a label wherever the assistant speaks.

1. A batch is a pure function of (seed, step): a run that is resumed sees what an uninterrupted one would have seen.
2. A row is one conversation from its beginning, cut at the row's length, so every prefix of a chat is trained as it is served.
"""

from random import Random
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from node.worker.demo.corpus import conversation, raw_text
from node.worker.demo.tokenizer import END, START

TOKENS_PER_BATCH = 4096
# Short rows teach first turns, which are most of what people ask; long ones teach long answers and long chats.
ROW_LENGTHS = (128, 128, 512, 128, 128, 512, 128, 1024)
RAW_SHARE = 0.04
# Nonsense that repeats itself: the quickest way to learn to copy, which names and counting need. Mostly at the beginning.
ECHO_SHARE, LATER_ECHO_SHARE, ECHO_STEPS = 0.1, 0.05, 300
IGNORED = -100


class Batch(NamedTuple):
    ids: torch.Tensor
    labels: torch.Tensor


def batch(tokenizer: PreTrainedTokenizerFast, seed: int, step: int) -> Batch:
    """Return the batch of `step`: (rows, length) ids and labels, the labels not yet shifted."""
    random = Random(f"{seed}/{step}")  # noqa: S311 (text to learn, no secret)
    length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
    echo = ECHO_SHARE if step < ECHO_STEPS else LATER_ECHO_SHARE
    rows = [
        _echo(tokenizer, random, length) if random.random() < echo else _row(tokenizer, random, length)
        for _ in range(TOKENS_PER_BATCH // length)
    ]
    return Batch(torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows]))


def _row(tokenizer: PreTrainedTokenizerFast, random: Random, length: int) -> tuple[list[int], list[int]]:
    segments = _raw(random) if random.random() < RAW_SHARE else _chat(random, length)
    encoded = tokenizer([text for text, _ in segments]).input_ids
    ids: list[int] = []
    labels: list[int] = []
    for tokens, (_, learned) in zip(encoded, segments, strict=True):
        ids += tokens
        labels += tokens if learned else [IGNORED] * len(tokens)
    missing = max(0, length - len(ids))
    return (ids + [tokenizer.pad_token_id] * missing)[:length], (labels + [IGNORED] * missing)[:length]


def _echo(tokenizer: PreTrainedTokenizerFast, random: Random, length: int) -> tuple[list[int], list[int]]:
    period = random.randrange(4, 60)
    first_text_token = len(tokenizer.all_special_ids)
    once = [random.randrange(first_text_token, len(tokenizer)) for _ in range(period)]
    ids = (once * (length // period + 1))[:length]
    return ids, [IGNORED] * period + ids[period:]


def _raw(random: Random) -> list[tuple[str, bool]]:
    prompt, continuation = raw_text(random)
    return [(prompt, False), (continuation + END, True)]


def _chat(random: Random, length: int) -> list[tuple[str, bool]]:
    # No turn is shorter than 12 tokens: so many turns fill the row.
    segments = []
    before = ""
    for message in conversation(random, length // 12):
        if message["role"] == "assistant":
            segments += [(f"{before}{START}assistant\n", False), (message["content"] + END, True)]
            before = "\n"
        else:
            before += f"{START}{message['role']}\n{message['content']}{END}\n"
    return segments
