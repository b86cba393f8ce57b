import pytest

from mesh.errors import Misconfigured
from node.backends.keys import MAX_KEY, key_of
from node.backends.settings import BackendSettings

OPENAI = "https://api.openai.com"


def key(url: str = OPENAI, **settings) -> str | None:
    return key_of(BackendSettings(type="openai", **settings), url)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "HF_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-usual")
    monkeypatch.setenv("MINE", " sk-mine\n")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (OPENAI, "sk-usual"),
        ("https://eu.api.openai.com/v1", "sk-usual"),
        ("https://api.openai.com.evil.example", None),
        ("http://127.0.0.1:11434", None),
        ("https://api.anthropic.com", None),
    ],
)
def test_a_providers_usual_key_goes_to_the_provider_alone(url, expected):
    assert key(url) == expected


def test_a_variable_or_a_file_of_ones_own_beats_the_usual_one(tmp_path):
    file = tmp_path / "key"
    file.write_text("sk-filed\n")
    assert key(api_key_env="MINE") == "sk-mine"
    assert key(api_key_file=file) == "sk-filed"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\xff", "not plain text"), (b"two words", "is not a key"), (b"x" * (MAX_KEY + 1), "is not a key")],
    ids=["empty", "binary", "words", "long"],
)
def test_a_file_that_holds_no_key_is_refused_without_repeating_it(tmp_path, content, said):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(Misconfigured) as caught:
        key(api_key_file=file)
    assert said in caught.value.message
    assert "two words" not in caught.value.message


def test_a_key_that_is_not_where_it_should_be(tmp_path):
    with pytest.raises(Misconfigured, match="--backend-api-key-env: the variable NOT_SET is empty"):
        key(api_key_env="NOT_SET")
    with pytest.raises(Misconfigured, match="No such file"):
        key(api_key_file=tmp_path / "none")
    with pytest.raises(Misconfigured, match="leave one of them out"):
        key(api_key_env="MINE", api_key_file=tmp_path / "none")
