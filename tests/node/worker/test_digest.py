"""The weights digest: what changes it, and where it is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from node.worker import digest
from node.worker.digest import KEPT_NAME, numerics_digest, weights_digest
from node.worker.directory import open_directory


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models_folder / "llama", tmp_path / "model")


def digest_of(folder: Path, kept_from: int = digest.KEPT_FROM) -> str:
    return weights_digest(open_directory(folder), kept_from=kept_from)


def test_equal_models_have_equal_digests_wherever_they_lie(folder: Path, models_folder: Path) -> None:
    assert digest_of(folder) == digest_of(models_folder / "llama")
    assert digest_of(folder) != digest_of(models_folder / "qwen3")
    assert not (folder / KEPT_NAME).exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_config_and_tokenizer_count(folder: Path, name: str) -> None:
    before = digest_of(folder)
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert digest_of(folder) != before


@pytest.mark.parametrize("place", [0.5, 1.0])
def test_weights_count(folder: Path, place: float) -> None:
    before = digest_of(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[int((len(content) - 1) * place)] ^= 1
    weights.write_bytes(content)
    assert digest_of(folder) != before


def test_a_kept_digest_is_used_until_a_file_changes(folder: Path) -> None:
    before = digest_of(folder, kept_from=0)
    kept = json.loads((folder / KEPT_NAME).read_text())
    (folder / KEPT_NAME).write_text(json.dumps({**kept, "digest": "from the file"}))
    assert digest_of(folder, kept_from=0) == "from the file"
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert digest_of(folder, kept_from=0) == before
    (folder / KEPT_NAME).write_text("broken")
    assert digest_of(folder, kept_from=0) == before


def test_it_is_kept_elsewhere_when_the_folder_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path.parent == folder:
            raise PermissionError(path)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    before = digest_of(folder, kept_from=0)
    (kept,) = (tmp_path / "cache" / "infermesh" / "digests").iterdir()
    assert json.loads(kept.read_text())["digest"] == before
    assert not (folder / KEPT_NAME).exists()


def test_every_part_of_numerics_counts() -> None:
    parts = ["weights", "template", "float32", "cpu"]
    assert numerics_digest(*parts) == numerics_digest(*parts)
    assert len({numerics_digest(*parts), numerics_digest(*parts[:-1]), numerics_digest(*reversed(parts))}) == 3
    assert numerics_digest("ab", "c") != numerics_digest("a", "bc")
