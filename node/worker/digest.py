"""What tells two models apart without reading them whole.

The weights digest is SHA-256 over config, tokenizer, and of every shard its size, header and `BLOCKS` evenly spaced blocks of
`BLOCK` bytes. It is kept beside the model, or in the user's cache folder where the model's folder cannot be written, and is valid
as long as names, sizes and modification times are. Small models are read again: that is faster than looking it up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING

from node.worker.directory import read_header
from node.worker.folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from node.worker.directory import ModelDirectory

BLOCKS = 64
BLOCK = 64 * 1024
KEPT_FROM = 256 * 1024 * 1024
"""Bytes of weights from which on the digest is kept."""
KEPT_NAME = ".infermesh-digest.json"


def weights_digest(directory: ModelDirectory, *, kept_from: int = KEPT_FROM) -> str:
    """The digest in hex."""
    if sum(shard.stat().st_size for shard in directory.shards) < kept_from:
        return _compute(directory)
    key = _key(directory)
    for place in _places(directory):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(place.read_bytes())
            if kept["key"] == key:
                return str(kept["digest"])
    digest = _compute(directory)
    _keep(directory, json.dumps({"key": key, "digest": digest}))
    return digest


def rounded_digest(digest: str, how: str) -> str:
    """The digest of weights that are served rounded: other weights than those that it was made of."""
    return hashlib.sha256(f"{digest}\0{how}".encode()).hexdigest()


def numerics_digest(*parts: str) -> str:
    """One name for everything that decides the numbers: equal names promise equal tokens."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _compute(directory: ModelDirectory) -> str:
    digest = hashlib.sha256()
    for file in (directory.path / "config.json", *directory.tokenizer_files):
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    for shard in directory.shards:
        header = read_header(shard)
        digest.update(f"{shard.name}\0{shard.stat().st_size}\0{len(header)}\0".encode())
        digest.update(header)
        for block in _blocks(shard):
            digest.update(block)
    return digest.hexdigest()


def _blocks(shard: Path) -> Iterator[bytes]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        for index in range(BLOCKS):
            # The first block at the start, the last one at the end.
            file.seek(max(0, size - BLOCK) * index // (BLOCKS - 1))
            yield file.read(BLOCK)


def _key(directory: ModelDirectory) -> list[list[str | int]]:
    files = (directory.path / "config.json", *directory.tokenizer_files, *directory.shards)
    stats = [(file, file.stat()) for file in files]
    return [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _places(directory: ModelDirectory) -> tuple[Path, Path]:
    name = hashlib.sha256(str(directory.path.resolve()).encode()).hexdigest()[:32]
    return directory.path / KEPT_NAME, cache_folder() / "digests" / f"{name}.json"


def _keep(directory: ModelDirectory, text: str) -> None:
    for place in _places(directory):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: another worker may read it right now.
            draft = place.with_name(f"{place.name}.{os.getpid()}")
            draft.write_text(text)
            draft.replace(place)
        except OSError:
            continue
        return
