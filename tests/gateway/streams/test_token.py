"""What a client shows to get its stream back."""

from __future__ import annotations

import pytest

from gateway.streams.token import ResumeToken, parse_event_id
from mesh.errors import NotFound

SECRET = bytes(range(16))
TOKEN = ResumeToken.of("12D3KooWNode", SECRET)


def test_a_token_comes_back_whole_and_names_its_node_alone():
    again = ResumeToken.parse(str(TOKEN))
    assert again == TOKEN
    assert again.secret == SECRET
    assert again.names("12D3KooWNode")
    assert not again.names("12D3KooWOther")


def test_it_fits_into_a_header_and_shows_its_secret_to_nobody_by_accident():
    assert len(str(TOKEN)) == 34
    assert ":" not in str(TOKEN)
    assert repr(SECRET) not in repr(TOKEN)


@pytest.mark.parametrize(
    "text",
    ["", "x", str(TOKEN)[:-1], str(TOKEN) + "A", "B" * 34, "!" * 34, "ä" * 34, str(TOKEN)[:-1] + "\n"],
    ids=range(8),
)
def test_what_is_no_token_names_no_stream(text):
    with pytest.raises(NotFound) as caught:
        ResumeToken.parse(text)
    assert caught.value.code == "stream_not_found"


def test_an_event_id_is_a_token_and_a_count():
    assert parse_event_id(f"{TOKEN}:17") == (TOKEN, 17)
    assert parse_event_id(f" {TOKEN}:0 ") == (TOKEN, 0)


@pytest.mark.parametrize("count", ["", "-1", "x", "1.5", "99999999999", "4294967296", "\u0663"], ids=range(7))
def test_a_count_that_is_none_names_no_stream(count):
    with pytest.raises(NotFound):
        parse_event_id(f"{TOKEN}:{count}")
