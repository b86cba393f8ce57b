"""The process that compiles grammars first: what it survives, what it does not, and what is left of it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mesh.errors import BackendFailed
from node.worker.output import rehearsal as module
from node.worker.output.grammar import Grammars
from node.worker.output.rehearsal import Rehearsal
from tests.node.worker.output.test_grammar import chained, lark

if TYPE_CHECKING:
    from collections.abc import Iterator

FINE = lark('start: "a"')


@pytest.fixture
def rehearsal(tokenizer: Any) -> Iterator[Rehearsal]:
    words, _ = Grammars(tokenizer, vocabulary=512, end_tokens=[tokenizer.eos_token_id])._prepare("p")
    made = Rehearsal(words)
    yield made
    made.close()


def test_one_process_tries_all_that_it_survives(rehearsal: Rehearsal) -> None:
    assert rehearsal.fails(FINE) == ""
    process = rehearsal._process
    assert process is not None
    # What is wrong with a grammar is told by the worker's own compiler.
    for text in (FINE, lark("start: nothing"), "no grammar at all", lark(chained(100))):
        assert rehearsal.fails(text) == ""
    assert rehearsal._process is process


def test_one_that_is_deep_ends_it_and_the_next_finds_another(rehearsal: Rehearsal) -> None:
    assert rehearsal.fails(FINE) == ""
    first = rehearsal._process
    assert first is not None
    assert "overflows" in rehearsal.fails(lark(chained(3000)))
    assert first.returncode is not None
    assert rehearsal.fails(FINE) == ""
    assert rehearsal._process is not first


def test_one_that_died_unseen_is_replaced(rehearsal: Rehearsal) -> None:
    assert rehearsal.fails(FINE) == ""
    process = rehearsal._process
    assert process is not None
    process.kill()
    process.wait()
    assert rehearsal.fails(FINE) == ""


def test_its_memory_is_bounded(rehearsal: Rehearsal) -> None:
    assert rehearsal.fails(FINE) == ""
    process = rehearsal._process
    assert process is not None
    soft, _ = psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS)
    assert module.MEMORY < soft < 2**60


def test_it_ends_with_its_worker() -> None:
    script = (
        "import sys; from node.worker.output.rehearsal import *; from node.worker.output.rehearsal import _tell\n"
        "import subprocess, os\n"
        "child = subprocess.Popen([sys.executable, '-m', 'node.worker.output.rehearsal'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    pid = int(done.stdout.split()[0])
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlives its worker"
        time.sleep(0.02)


def test_forgetting_it_ends_the_process(rehearsal: Rehearsal) -> None:
    other = Rehearsal(rehearsal._words)
    assert other.fails(FINE) == ""
    process = other._process
    assert process is not None
    del other
    gc.collect()
    assert process.returncode is not None


def test_without_a_process_nothing_is_compiled(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/nowhere/python")
    with pytest.raises(BackendFailed, match="could not be checked"):
        rehearsal.fails(FINE)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(BackendFailed, match="did not start"):
        rehearsal.fails(FINE)


def test_it_imports_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, node.worker.output.rehearsal, llguidance; print([m for m in sys.modules if m in ('torch', 'transformers')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    assert json.loads(done.stdout.replace("'", '"')) == []
