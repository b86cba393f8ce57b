"""A model directory as Hugging Face lays it out, checked before anything is loaded from it.

1. Weights are read from safetensors only: a pickle runs code when it is opened. Code beside the weights is never run.
2. Whatever is missing or broken is `Misconfigured`, with the way out.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the safetensors library has."""


@dataclass(frozen=True, kw_only=True)
class ModelDirectory:
    """The files that matter. `config` is the parsed config.json."""

    path: Path
    config: dict[str, Any]
    tokenizer_files: tuple[Path, ...]
    shards: tuple[Path, ...]


def open_directory(path: Path) -> ModelDirectory:
    """Check a model directory. Raises Misconfigured."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise Misconfigured(f"the model directory {path} {what}; give a folder with config.json, tokenizer and *.safetensors")
    config = _config(path)
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise Misconfigured(f"{path} has no tokenizer; copy tokenizer.json (and tokenizer_config.json) of the model into it")
    shards = _shards(path)
    for shard in shards:
        _check_length(shard)
    files = [path / name for name in (*TOKENIZERS, *TOKENIZER_EXTRAS) if (path / name).is_file()]
    return ModelDirectory(path=path, config=config, tokenizer_files=tuple(files), shards=shards)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        raise Misconfigured(f"{path} has no config.json; it is not a Hugging Face model directory") from None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise Misconfigured(f"{path}/config.json does not hold an object; copy the model's own again")
    return config


def _shards(path: Path) -> tuple[Path, ...]:
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    if (path / INDEX).is_file():
        return _indexed(path)
    if pickles := sorted(file.name for pattern in PICKLES for file in path.glob(pattern)):
        raise Misconfigured(
            f"{path} holds its weights as a pickle ({pickles[0]}), which can run code when it is opened and is never loaded; "
            "get the model in safetensors format or convert it on a machine where that is no danger"
        )
    raise Misconfigured(f"{path} holds no weights; copy model.safetensors, or its shards with {INDEX}, into it")


def _indexed(path: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads((path / INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"{path}/{INDEX} cannot be read ({error!r}); copy the model's own again") from error
    if not names:
        raise Misconfigured(f"{path}/{INDEX} names no shards; copy the model's own again")
    for name in names:
        if "/" in str(name) or not str(name).endswith(".safetensors"):
            raise Misconfigured(f"{path}/{INDEX} names {name}, which is no safetensors file beside it")
        if not (path / name).is_file():
            raise Misconfigured(f"{path} lacks the shard {name}; the download is incomplete, fetch it again")
    return tuple(path / name for name in names)


def read_header(shard: Path) -> bytes:
    """A safetensors file's header as it stands: 8 bytes of length and JSON. Raises Misconfigured."""
    with shard.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else LONGEST_HEADER + 1
        header = file.read(size) if size <= LONGEST_HEADER else b""
    if not header or len(header) != size or not header.lstrip().startswith(b"{"):
        raise Misconfigured(f"{shard} is not a safetensors file, or cut short; fetch it again")
    return prefix + header


def _check_length(shard: Path) -> None:
    """A file that ends before its last tensor is a download that stopped."""
    try:
        ends = [entry["data_offsets"][1] for entry in tensors_of(shard).values()]
        expected = len(read_header(shard)) + max(ends, default=0)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise Misconfigured(f"{shard} has a broken header; fetch it again") from error
    if shard.stat().st_size < expected:
        raise Misconfigured(f"{shard} is cut short: {shard.stat().st_size} of {expected} bytes; fetch it again")


def tensors_of(shard: Path) -> dict[str, Any]:
    """The header's entries: name -> {dtype, shape, data_offsets}. Raises Misconfigured."""
    try:
        entries = json.loads(read_header(shard)[8:])
    except ValueError as error:
        raise Misconfigured(f"{shard} has a broken header; fetch it again") from error
    entries.pop("__metadata__", None)
    tensors: dict[str, Any] = entries
    return tensors
