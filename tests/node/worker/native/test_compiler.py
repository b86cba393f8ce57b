"""Libraries are compiled once, whole, and never from a folder that others may write to."""

from __future__ import annotations

import ctypes
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from node.worker.fused.way import fastest
from node.worker.native import compiler, kernels, products
from node.worker.native.compiler import SWITCH, Unavailable, library
from tests.node.worker.fused.test_decoder import MODELS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(subprocess.call(["which", "cc"], stdout=subprocess.DEVNULL) != 0, reason="no C compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "infermesh" / "native"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library of its own beside the compiler's module."""
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.setattr(compiler, "__file__", str(folder / "compiler.py"))
    path = folder / "small.c"
    path.write_text("int answer(void) { return VALUE; }\n")
    return path


def test_a_library_is_compiled_once_for_each_definition(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library("small", "VALUE=41").answer() == 41
    assert library("small", "VALUE=42").answer() == 42
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert library("small", "VALUE=42").answer() == 42
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_another_source_header_or_compiler_is_another_library(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library("small", "VALUE=1")
    (source.parent / "more.h").write_text("/* new */\n")
    library("small", "VALUE=1")
    source.write_text("int answer(void) { return 2 * VALUE; }\n")
    assert library("small", "VALUE=1").answer() == 2
    other = source.parent / "other-cc"
    other.write_text('#!/bin/sh\nexec cc "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CC", str(other))
    library("small", "VALUE=1")
    assert len(list(cache.glob("small-*.so"))) == 4


def test_workers_that_compile_at_once_do_not_meet(cache: Path, source: Path) -> None:
    script = (
        "import sys\nfrom node.worker.native import compiler\nfrom node.worker.native.compiler import library\n"
        f"compiler.__file__ = {str(source.parent / 'compiler.py')!r}\n"
        "sys.exit(library('small', 'VALUE=7').answer())"
    )
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [each.wait() for each in running] == [7, 7, 7]
    assert [each.suffix for each in cache.iterdir()] == [".so"]


def test_threads_of_one_worker_do_not_meet_either(cache: Path, source: Path) -> None:
    with ThreadPoolExecutor() as pool:
        assert [each.answer() for each in pool.map(lambda _: library("small", "VALUE=7"), range(4))] == [7] * 4
    assert [each.suffix for each in cache.iterdir()] == [".so"]


def test_what_cannot_be_compiled_says_why_and_leaves_nothing(cache: Path, source: Path) -> None:
    source.write_text("int answer(void) { return nothing; }\n")
    with pytest.raises(Unavailable, match=r"cannot compile small\.c: .*error.*nothing"):
        library("small")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_does_not_end_is_ended(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = source.parent / "slow-cc"
    # A driver whose own child holds the output open.
    slow.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(compiler, "PATIENCE", 0.3)
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="took more than"):
        library("small", "VALUE=1")
    assert time.monotonic() - begun < 30


def test_a_folder_that_others_may_write_to_is_not_used(cache: Path, source: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(Unavailable, match="chmod 700"):
        library("small", "VALUE=1")


def test_without_a_place_for_it_there_is_none(cache: Path, source: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file is in the way\n")
    with pytest.raises(Unavailable, match="infermesh"):
        library("small", "VALUE=1")


def test_a_file_that_is_no_library_is_made_again_by_the_next(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", lambda _source, _command, kept: kept.write_bytes(b"torn"))
        with pytest.raises(Unavailable, match="small"):
            library("small", "VALUE=9")
    assert library("small", "VALUE=9").answer() == 9


@pytest.mark.parametrize(("variable", "value", "reason"), [("CC", "no-such-cc", "no C compiler"), (SWITCH, "0", "is set")])
def test_a_model_without_kernels_runs_on_torch(
    variable: str, value: str, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    caches = (kernels._made, products._made)
    for each in caches:
        each.cache_clear()
    caplog.set_level("INFO")
    try:
        way = fastest(MODELS["qwen 3"]().to(torch.bfloat16))
        assert kernels.found(torch.bfloat16) is None
    finally:
        for each in caches:
            each.cache_clear()
    assert way.name == "fused"
    assert caplog.text.count(reason) == 2


def test_a_library_is_a_library() -> None:
    assert isinstance(library("kernels", "TYPE=1"), ctypes.CDLL)
