"""Model directories that cannot be served are refused with the way out."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from mesh.errors import Misconfigured
from node.worker.directory import INDEX, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models_folder / "llama", tmp_path / "model")


def shard(folder: Path, names: list[str]) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def test_a_good_directory_is_opened(folder: Path) -> None:
    directory = open_directory(folder)
    assert directory.config["model_type"] == "llama"
    assert [file.name for file in directory.shards] == ["model.safetensors"]
    shard(folder, ["model-1.safetensors"] * 3)
    assert [file.name for file in open_directory(folder).shards] == ["model-1.safetensors"]


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


def stopped_download(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


def header_without_offsets(folder: Path) -> None:
    header = b'{"weight":{"dtype":"F32"}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def disguised_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(200))


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (shutil.rmtree, "does not exist"),
    (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
    (lambda folder: (folder / "config.json").write_text("[]"), "does not hold an object"),
    (no_tokenizer, "has no tokenizer; copy tokenizer.json"),
    (only_pickle, "pickle .pytorch_model.bin.*safetensors"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    (cut_short, "cut short"),
    (stopped_download, r"cut short: \d+ of \d+ bytes; fetch it again"),
    (header_without_offsets, "broken header"),
    (disguised_pickle, "not a safetensors file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a safetensors file"),
    (lambda folder: shard(folder, ["model-1.safetensors", "model-2.safetensors"]), "lacks the shard model-2.safetensors"),
    (lambda folder: shard(folder, ["../model.safetensors"]), "no safetensors file beside it"),
    (lambda folder: shard(folder, []), "names no shards"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong_is_named(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(Misconfigured, match=message):
        open_directory(folder)


def test_a_file_is_not_a_directory(folder: Path) -> None:
    with pytest.raises(Misconfigured, match="is a file"):
        open_directory(folder / "config.json")
