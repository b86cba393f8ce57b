"""Faster ways are turned on where they are right, and stay off with a reason where they are not."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mesh.errors import Misconfigured
from node.worker import loader
from node.worker.cuda import proof, varlen
from node.worker.cuda.marks import Marks
from node.worker.cuda.probe import computed
from node.worker.cuda.proof import Graphs, Varlen, faster, prove
from node.worker.fused.way import modules
from node.worker.loader import Options, load
from tests.node.worker.cuda.by_lengths import Again, varlen_attn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from node.worker.runner import SlotRunner

VOCABULARY = 512


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: varlen_attn)
    # As it is on a GPU.
    monkeypatch.setattr(loader, "fastest", modules)
    monkeypatch.setattr(proof, "refusal", lambda *_: None)


@pytest.fixture
def loaded(models_folder: Path) -> Callable[..., SlotRunner]:
    def make(name: str = "qwen3", slots: int = 12, **options: Any) -> SlotRunner:
        chosen = Options(path=models_folder / name, device="cpu", dtype="float32", slots=slots, **options)
        runner: Any = load(chosen, lambda _: None)[0]._runner
        return runner  # type: ignore[no-any-return]

    return make


def graphs(played: list[int], *, wrong: float = 0.0, adapted: bool = False) -> Graphs:
    return Graphs(lambda: Again(played, wrong=wrong), adapted=adapted)


@pytest.mark.parametrize("name", ["qwen3", "mistral-window"])
def test_what_is_right_is_turned_on(name: str, loaded: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runner = loaded(name)
    played: list[int] = []
    assert prove(runner, [Varlen(), graphs(played)], Marks(tmp_path), VOCABULARY) == ["varlen", "graphs"]
    assert (runner.varlen, sorted(set(played))) == (True, [4, 8, 12])
    assert "computing on the GPU with varlen and graphs" in caplog.text
    assert not list(tmp_path.iterdir())
    # Nothing is left of it but what was turned on.
    assert not bool(runner.arena.keys[:, :, : runner.arena.scrap].any())
    assert runner.memory.stats.misses == runner.memory.stats.total_cached == 0


@pytest.mark.parametrize("room", [{"slots": 1, "context": 256}, {"slots": 2, "context": 128}, {"slots": 40}])
def test_in_any_room(room: dict[str, int], loaded: Any, tmp_path: Path) -> None:
    runner = loaded(cache_mib=1, **room)
    assert prove(runner, [Varlen(), graphs([])], Marks(tmp_path), VOCABULARY) == ["varlen", "graphs"]


class Wrong:
    """A kernel that does not do what the documentation says."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        query, key, value, first, begin, most, context = args
        back, ahead = options["window_size"]
        match self._what:
            case "raises":
                raise RuntimeError("no kernel image is available\nfor execution")
            case "window" if back > 0:
                options["window_size"] = (back + 1, ahead)
            case "not causal" if most > 1:
                options["window_size"] = (back, -1)
            case "single tokens" if most == 1:
                options["seqused_k"] = options["seqused_k"].clamp(max=20)
            case "long past":
                options["seqused_k"] = options["seqused_k"].clamp(max=300)
            case "order" if len(begin) > 2:
                begin = torch.cat([begin[:1], begin[:1], begin[2:]])
            case "scaling":
                options["scale"] = 1.3 * (options["scale"] or query.shape[-1] ** -0.5)
        return varlen_attn(query, key, value, first, begin, most, context, **options)


@pytest.mark.parametrize("what", ["raises", "window", "not causal", "single tokens", "long past", "order", "scaling"])
def test_a_kernel_that_is_wrong_in_any_way_is_not_used(
    what: str, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = loaded()
    before = computed(runner, VOCABULARY)
    monkeypatch.setattr(varlen, "kernel", lambda: Wrong(what))
    assert prove(runner, [Varlen(), graphs([])], Marks(tmp_path), VOCABULARY) == []
    reason = "RuntimeError: no kernel image is available" if what == "raises" else "differs by"
    assert "faster way varlen is not used: " in caplog.text
    assert reason in caplog.text
    assert (runner.varlen, runner.recorded) == (False, None)
    assert not list(tmp_path.iterdir())
    for now, then in zip(computed(runner, VOCABULARY), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (graphs([], wrong=0.1), "differs by"),
        (graphs([], wrong=float("nan")), "differs by nan"),
        (graphs([], adapted=True), "adapters are served"),
        (Graphs(lambda: 1 / 0, adapted=False), "ZeroDivisionError"),  # type: ignore[arg-type, return-value]
    ],
    ids=["wrong", "NaN", "adapters", "raises"],
)
def test_recordings_that_are_wrong_leave_the_rest_on(
    way: Graphs, reason: str, loaded: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = loaded()
    assert prove(runner, [Varlen(), way], Marks(tmp_path), VOCABULARY) == ["varlen"]
    assert reason in caplog.text
    assert (runner.varlen, runner.recorded) == (True, None)


def test_nothing_to_compare_with_is_nothing_to_turn_on(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = loaded()
    monkeypatch.setattr(runner, "run", lambda _: torch.empty(1 << 60))
    assert prove(runner, [Varlen()], Marks(tmp_path), VOCABULARY) == []
    assert "nothing to compare them with" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
from node.worker import loader
from node.worker.cuda import proof, varlen
from node.worker.fused.way import modules
from node.worker.loader import Options, load
from node.worker.cuda.marks import Marks

proof.refusal = lambda *_: None
varlen.kernel = lambda: lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
runner = load(Options(path=Path(sys.argv[1]), device="cpu", dtype="float32", slots=2), lambda _: None)[0]._runner
proof.prove(runner, [proof.Varlen()], Marks(Path(sys.argv[2])), 512)
"""


def test_what_ended_a_worker_is_not_tried_by_the_next(
    loaded: Any, models_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(models_folder / "qwen3"), str(tmp_path)], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (left,) = tmp_path.glob("varlen-*")
    runner = loaded()
    assert prove(runner, [Varlen(), graphs([])], Marks(tmp_path), VOCABULARY) == []
    assert f"a worker ended while it tried that; delete {left} to try again" in caplog.text
    assert not runner.varlen
    left.unlink()
    assert prove(runner, [Varlen(), graphs([])], Marks(tmp_path), VOCABULARY) == ["varlen", "graphs"]


def test_a_device_that_is_broken_leaves_a_mark(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(varlen, "kernel", lambda: Wrong("raises"))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    runner, marks = loaded(), Marks(tmp_path)
    runner.device = torch.device("cuda", 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        prove(runner, [Varlen()], marks, VOCABULARY)
    assert marks.left("varlen") is not None


def test_without_a_place_for_marks_nothing_is_tried(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "infermesh").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = loaded()
    runner.device = torch.device("cuda", 0)
    assert faster(runner, VOCABULARY, device_name="GPU", adapted=False) == []
    assert "no mark can be made" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
    assert not runner.varlen


def test_the_operator_chooses_how_far_to_go(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proof, "CudaRecorder", lambda _: Again([]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    runner = loaded()
    runner.device = torch.device("cuda", 0)
    for level, names in ((None, ["varlen", "graphs"]), ("plain", []), ("varlen", ["varlen"]), ("graphs", ["varlen", "graphs"])):
        if level is not None:
            monkeypatch.setenv(proof.SWITCH, level)
        assert faster(runner, VOCABULARY, device_name="GPU", adapted=False) == names
        assert (runner.varlen, runner.recorded is not None) == ("varlen" in names, "graphs" in names)
        runner.varlen, runner.recorded = False, None
    monkeypatch.setenv(proof.SWITCH, "most")
    with pytest.raises(Misconfigured, match="INFERMESH_CUDA=most is not known; use plain, varlen, graphs"):
        faster(runner, VOCABULARY, device_name="GPU", adapted=False)


def test_a_model_on_a_cpu_is_left_as_it_is(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = loaded()
    assert faster(runner, VOCABULARY, device_name="CPU", adapted=False) == []
    assert (runner.varlen, runner.recorded) == (False, None)
    assert not (tmp_path / "infermesh" / "cuda").exists()


def test_what_is_turned_on_is_part_of_how_a_model_computes(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numerics(*names: str) -> str:
        monkeypatch.setattr(loader, "faster", lambda *_, **__: list(names))
        return load(Options(path=models_folder / "qwen3", device="cpu", dtype="float32"), lambda _: None)[1].numerics

    assert len({numerics(), numerics("varlen"), numerics("varlen", "graphs")}) == 3
