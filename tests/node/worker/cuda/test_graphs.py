"""Steps that are recorded and played again give what computing them gives."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import pytest
import torch

from node.worker import loader
from node.worker.cuda import varlen
from node.worker.cuda.graphs import WARM_UPS, CudaRecorder, Recorded, Recorder, heights
from node.worker.fused.way import modules
from tests.node.worker.cuda.by_lengths import Again, varlen_attn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from node.worker.runner import SlotRunner

SLOTS = 12


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: varlen_attn)
    # As it is on a GPU.
    monkeypatch.setattr(loader, "fastest", modules)


@pytest.fixture
def recording(make_driver: Any) -> Callable[..., tuple[Any, SlotRunner]]:
    def make(recorder: Callable[[], Recorder]) -> tuple[Any, SlotRunner]:
        driver = make_driver("mistral-window", slots=SLOTS)
        runner = driver.engine._runner
        runner.varlen = True
        runner.recorded = Recorded(
            runner.forward, runner.arena, heights=heights(4, SLOTS), context=runner.context_length, recorder=recorder
        )
        runner.recorded.record()
        return driver, runner

    return make


def answers(driver: Any, prompts: list[list[int]]) -> list[list[int]]:
    numbers = []
    for place, prompt in enumerate(prompts):
        numbers.append(driver.submit(prompt=prompt, max_tokens=14 + 3 * place % 11))
        driver.step()
    driver.run()
    return [driver.outcomes[number].ids for number in numbers]


def test_heights_are_doubled_up_to_the_slots() -> None:
    assert heights(4, 16) == [4, 8, 16]
    assert heights(4, 20) == [4, 8, 16, 20]
    assert heights(4, 4) == heights(4, 1) == [4]


def test_played_steps_give_the_same_answers(make_driver: Any, recording: Any, prompts: list[list[int]]) -> None:
    expected = answers(make_driver("mistral-window", slots=SLOTS), prompts)
    played: list[int] = []
    driver, runner = recording(lambda: Again(played))
    anybody = runner.arena.keys[:, :, : runner.arena.scrap]
    assert not bool(anybody.any())
    assert answers(driver, prompts) == expected
    assert set(played) == {4, 8, 12}
    # Those that began a prompt were not among them.
    assert len(played) < len(driver.batches)


def test_without_memory_the_largest_steps_are_computed_as_they_come(
    make_driver: Any, recording: Any, prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(make_driver("mistral-window", slots=SLOTS), prompts)
    played: list[int] = []
    driver, _ = recording(lambda: Again(played, most=8))
    assert "steps of 12 rows are not recorded: the device has no memory left" in caplog.text
    assert answers(driver, prompts) == expected
    assert set(played) == {4, 8}
    assert max(driver.batches) > 8


def test_what_cannot_be_recorded_is_said_and_nothing_is_kept(recording: Any, prompts: list[list[int]]) -> None:
    def breaking() -> Recorder:
        again, heights = Again([]), []

        def record(compute: Callable[[], torch.Tensor]) -> Any:
            heights.append(1)
            if len(heights) > 1:
                raise RuntimeError("operation not permitted when stream is capturing")
            return again(compute)

        return record

    with pytest.raises(RuntimeError, match="not permitted"):
        recording(breaking)


def test_asleep_nothing_is_held_and_awake_everything_is_recorded_anew(recording: Any, prompts: list[list[int]]) -> None:
    played: list[int] = []
    made: list[int] = []

    def recorder() -> Recorder:
        made.append(1)
        return Again(played)

    driver, runner = recording(recorder)
    expected = answers(driver, prompts)
    before = runner.arena.keys.data_ptr()
    held = runner.recorded
    driver.engine.rest()
    assert not held._recordings
    # Taken, so that the arena comes to lie elsewhere.
    runner.arena.allocate()
    kept = runner.arena.keys
    driver.engine.rise()
    assert before != runner.arena.keys.data_ptr() != kept.data_ptr()
    assert len(made) == 2
    played.clear()
    assert answers(driver, prompts) == expected
    assert set(played) == {4, 8, 12}


def test_what_cannot_be_recorded_again_is_computed(
    recording: Any, prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    played: list[int] = []
    left = [Again(played)]
    driver, runner = recording(lambda: left.pop())
    expected = answers(driver, prompts)
    played.clear()
    driver.engine.rest()
    driver.engine.rise()
    assert "steps are not recorded any more" in caplog.text
    assert runner.recorded is None
    assert answers(driver, prompts) == expected
    assert not played


class Cuda:
    """Stands for torch's streams and graphs: writes down what is asked of them, in the words that torch takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.current = "main"
        self.pools = 0
        self._graph = inspect.signature(torch.cuda.graph.__init__)
        cuda = self

        class Stream:
            def __init__(self, name: Any = "side") -> None:
                self.name = name if isinstance(name, str) else "side"

            def wait_stream(self, other: Stream) -> None:
                cuda.said.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self) -> None:
                cuda.said.append("play")

        for name, stand_in in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "current_stream": lambda: Stream(self.current),
            "stream": self.stream,
            "graph": self.graph,
            "graph_pool_handle": self.pool,
            "device": lambda _: contextlib.nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def pool(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    # After an error it stays on its stream, as torch's does.
    @contextlib.contextmanager
    def graph(self, *args: Any, **options: Any) -> Iterator[None]:
        told = self._graph.bind(None, *args, **options).arguments
        self.said.append(f"record on {told['stream'].name} in {told['pool']}")
        before, self.current = self.current, told["stream"].name
        yield
        self.current = before


def test_it_is_warm_before_it_is_recorded_and_all_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    record = CudaRecorder(torch.device("cuda", 0))

    def compute() -> torch.Tensor:
        cuda.said.append(f"compute on {cuda.current}")
        return torch.ones(1)

    play, result = record(compute)
    record(compute)
    play()
    once = [
        "side waits for main",
        *["compute on side"] * WARM_UPS,
        "main waits for side",
        "record on side in pool 1",
        "compute on side",
    ]
    assert cuda.said == [*once, *once, "play"]
    assert (cuda.current, result.tolist()) == ("main", [1])


def test_after_an_error_torch_computes_where_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)

    def compute() -> torch.Tensor:
        if cuda.said[-1].startswith("record"):
            raise RuntimeError("not while recording")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match="not while recording"):
        CudaRecorder(torch.device("cuda", 0))(compute)
    assert cuda.current == "main"
