"""Thoughts apart from speech, however the text is cut."""

from __future__ import annotations

import pytest

from node.worker.output.thoughts import ThoughtSplitter


def split(pieces: list[str], *, inside: bool) -> tuple[str, str]:
    splitter = ThoughtSplitter(inside=inside)
    parts = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("Hello.", False, ("", "Hello.")),
        ("<think>\nHm.\n</think>\n\nHello.", False, ("Hm.", "Hello.")),
        ("\n<think>a < b</think>b", False, ("a < b", "b")),
        ("Hm, </thin or\nso\n</think>\nHello <think> you", True, ("Hm, </thin or\nso", "Hello <think> you")),
        ("I never end </th", True, ("I never end </th", "")),
        ("<thin", False, ("", "<thin")),
        ("<b>bold</b>", False, ("", "<b>bold</b>")),
        ("<think></think>", False, ("", "")),
        ("  x", False, ("", "  x")),
    ],
)
def test_thought_and_speech(text: str, inside: bool, expected: tuple[str, str]) -> None:
    assert split([text], inside=inside) == expected
    assert split(list(text), inside=inside) == expected
