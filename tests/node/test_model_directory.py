import pytest

from mesh.errors import Misconfigured
from node.model_directory import check_model_directory


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def refusal(path) -> str:
    with pytest.raises(Misconfigured) as caught:
        check_model_directory(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_complete_directory_passes(directory) -> None:
    check_model_directory(directory)


def test_a_missing_directory_is_named(tmp_path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_a_file_is_not_a_directory(directory) -> None:
    assert "is not a directory" in refusal(directory / "config.json")


@pytest.mark.parametrize(("text", "part"), [(None, "no config.json"), ("{", "cannot read"), ("[]", "not a JSON object")])
def test_a_bad_config_is_refused(directory, text, part: str) -> None:
    (directory / "config.json").unlink()
    if text is not None:
        (directory / "config.json").write_text(text)
    assert part in refusal(directory)


def test_a_missing_tokenizer_is_named(directory) -> None:
    (directory / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(directory)


def test_missing_weights_are_named(directory) -> None:
    (directory / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(directory)


def test_a_pickle_is_refused_by_name(directory) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(directory)
