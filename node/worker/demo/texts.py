"""The text that was written for the demo model, as files: whoever wants other answers edits them and trains again.

1. `lines`: one entry a line. `words`: one entry a word. `pairs`: `key: value`, one a line.
2. `topics`: blocks between lines of `---`; in a block the questions, one a line, then an empty line, then the answer as it is.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "text"


class Topic(NamedTuple):
    """An answer, and the ways people ask for it."""

    questions: tuple[str, ...]
    answer: str


@cache
def lines(name: str) -> tuple[str, ...]:
    return tuple(_read(name).splitlines())


def words(name: str) -> tuple[str, ...]:
    return tuple(_read(name).split())


def pairs(name: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition(": ") for line in lines(name))}


def topics(name: str) -> tuple[Topic, ...]:
    blocks = (block.split("\n\n", 1) for block in _read(name).split("\n---\n"))
    return tuple(Topic(tuple(questions.splitlines()), answer) for questions, answer in blocks)


def _read(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
