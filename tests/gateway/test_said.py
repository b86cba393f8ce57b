import pytest

from gateway.said import MAX_CHARACTERS, SaidText
from mesh.messages.inference import Delta, Said, ToolCallDelta


def told(*texts: str, kept: bool = True) -> SaidText:
    text = SaidText()
    text.begin(kept=kept)
    for number, one in enumerate(texts):
        text.add(Delta(number, [], one))
    return text


def test_pieces_are_put_together_and_counted():
    text = told("one", " two")
    assert text.usable
    assert text.said == Said("one two", 2)


def test_who_begins_anew_forgets_what_was_said():
    text = told("one")
    text.begin(kept=True)
    assert (text.usable, text.said, text.pieces) == (False, None, 0)


def test_what_nobody_could_go_on_behind_is_counted_and_not_kept():
    text = told("one", " two", kept=False)
    assert (text.usable, text.said, text.pieces) == (False, None, 2)


@pytest.mark.parametrize(
    "delta",
    [
        Delta(1, [], "", reasoning="hm"),
        Delta(1, [], "", tool_calls=[ToolCallDelta(0, "c", "f")]),
        Delta(1, [], "x" * MAX_CHARACTERS),
    ],
    ids=["a thought", "a call", "too much"],
)
def test_what_is_no_plain_text_or_too_much_of_it_ends_it_for_good(delta):
    text = told("one")
    text.add(delta)
    text.add(Delta(2, [], "more"))
    assert (text.usable, text.said, text.pieces) == (False, None, 3)


def test_as_much_as_the_bound_is_kept():
    text = told("x" * MAX_CHARACTERS)
    assert text.said == Said("x" * MAX_CHARACTERS, 1)
