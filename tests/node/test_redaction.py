import pytest

from node.redaction import HIDDEN, Redaction


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "DB_PASSWORD", "CLIENT_SECRET", "KEY", "x-api-key"])
def test_the_value_of_a_secret_variable_is_hidden_wherever_it_stands(name: str) -> None:
    redaction = Redaction([], {name: "swordfish", "HOME": "/home/someone"})
    assert redaction.apply("GET /home/someone?q=swordfish!") == f"GET /home/someone?q={HIDDEN}!"


@pytest.mark.parametrize("argv", [["serve", "--api-key", "swordfish"], ["serve", "--api-key=swordfish", "--port", "8000"]])
def test_the_value_of_a_secret_flag_is_hidden(argv: list[str]) -> None:
    assert Redaction(argv, {}).apply("argv: swordfish 8000") == f"argv: {HIDDEN} 8000"


@pytest.mark.parametrize(
    "line",
    [
        "bad key sk-proj-1234567890abcdefgh",
        "hf_0123456789abcdefghij",
        "Authorization: Bearer abcdefgh12345",
        "postgres password=hunter2 host=db",
    ],
)
def test_what_looks_like_a_key_is_hidden_whoever_it_belongs_to(line: str) -> None:
    hidden = Redaction([], {}).apply(line)
    assert HIDDEN in hidden
    assert not any(secret in hidden for secret in ("1234567890", "0123456789", "abcdefgh12345", "hunter2"))


@pytest.mark.parametrize(
    "line",
    ["a token was generated", "KeyError: 'keys'", "hf_hub_download_is_missing", "1 monkey, 100 tokens", "MAX_TOKENS=100000"],
)
def test_other_lines_are_left_as_they_are(line: str) -> None:
    assert Redaction(["--max-tokens", "100000"], {"MAX_TOKENS": "100000", "A_KEY": "1", "MONKEY": "monkey"}).apply(line) == line


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    assert Redaction([], {"A_KEY": "abcdef", "B_KEY": "abcdefghi"}).apply("abcdefghi abcdef") == f"{HIDDEN} {HIDDEN}"
