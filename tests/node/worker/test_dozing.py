"""A model that gives its memory back and is itself again afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from mesh.messages.inference import Done, Fail, InferenceRequest
from node.worker.loader import Options
from node.worker.lora.adapter import Pair
from node.worker.lora.layers import AdaptedLinear, Selection
from node.worker.opening import open_model
from node.worker.weights import Weights
from tests.node.worker.adapters import save_adapter
from tests.node.worker.architectures import save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from node.worker.serving import Serving


class Opened:
    """A whole model, driven step by step."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.serving: Serving
        chosen = Options(path=path, device="cpu", dtype="float32", cache_mib=8, **options)
        self.serving, self.ready = open_model(chosen, lambda _: None)
        self._number = 0

    def take(self, **fields: Any) -> int:
        self._number += 1
        fields = {"model": "m", "task": "completion", "max_tokens": 12, "temperature": 0.0, **fields}
        request = InferenceRequest(request_id=f"r{self._number}", **fields)
        self.serving.take(self.serving.intake.prepare(self._number, request))
        return self._number

    def events(self) -> list[Any]:
        found: list[Any] = []
        while step := self.serving.step():
            found += [event for _, event in step.events]
        return found

    def answer(self, **fields: Any) -> list[int]:
        self.take(**fields)
        events = self.events()
        assert isinstance(events[-1], Done), events
        return [token for event in events for token in getattr(event, "token_ids", [])]

    def answers(self, prompts: list[list[int]]) -> dict[int, list[int]]:
        """Those of several requests at once, by place."""
        numbers = [self.take(prompt=prompt) for prompt in prompts]
        ids: dict[int, list[int]] = {place: [] for place in range(len(prompts))}
        while step := self.serving.step():
            for number, event in step.events:
                ids[numbers.index(number)] += getattr(event, "token_ids", [])
        return ids

    @property
    def arena(self) -> Any:
        runner: Any = self.serving._text._runner
        return getattr(runner, "_runner", runner).arena


@pytest.fixture
def opened(models_folder: Path) -> Callable[..., Opened]:
    return lambda name="llama", **options: Opened(models_folder / name, **options)


@pytest.mark.parametrize("kind", ["llama-tied", "gemma3"])
def test_the_same_text_before_and_after_by_any_way_of_computing(
    kind: str, tmp_path: Path, tokenizer: Any, prompts: list[list[int]]
) -> None:
    save(tmp_path / "model", kind, tokenizer)
    model = Opened(tmp_path / "model")
    before = model.answers(prompts[3:7])
    taken = model.arena.bytes
    for _ in range(2):
        note = model.serving.doze()
        assert model.arena.bytes == 0
        assert note.startswith(f"{taken >> 20} MiB of keys and values given back; the weights stay")
        assert model.serving.doze() == note
        model.serving.rise()
        assert model.arena.bytes == taken
        assert model.answers(prompts[3:7]) == before
    assert model.serving.stats.cache.hits == 0, "what was cached before the sleep is gone"
    assert model.answers(prompts[3:7]) == before
    assert model.serving.stats.cache.hits > 0, "and what was computed since is there"


def test_a_model_on_plain_generate_dozes_too(opened: Any, prompts: list[list[int]]) -> None:
    model = opened("stablelm")
    before = model.answer(prompt=prompts[4])
    model.serving.doze()
    model.serving.rise()
    assert model.answer(prompt=prompts[4]) == before


def test_adapters_wake_with_their_base(opened: Any, models_folder: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    save_adapter(tmp_path / "one", AutoModelForCausalLM.from_pretrained(models_folder / "llama"), seed=1)
    model = opened(adapters={"one": tmp_path / "one"})
    before = [model.answer(prompt=prompts[5], model=name) for name in ("m", "one")]
    assert before[0] != before[1]
    model.serving.doze()
    model.serving.rise()
    assert [model.answer(prompt=prompts[5], model=name) for name in ("m", "one")] == before


def test_what_was_computed_before_is_forgotten_and_what_runs_is_told(opened: Any, prompts: list[list[int]]) -> None:
    model = opened()
    model.take(prompt=prompts[6])
    model.serving.step()
    model.take(task="embedding", inputs=[prompts[3]])
    model.serving.clear()
    ends = model.events()
    assert [end.code for end in ends if isinstance(end, Fail)] == ["model_asleep"] * 2
    model.serving.doze()
    assert model.serving.stats.cache.total_cached == 0
    for fields in ({"prompt": prompts[6]}, {"task": "embedding", "inputs": [prompts[3]]}):
        model.take(**fields)
        (end,) = model.events()
        assert (end.kind, end.code) == ("Unavailable", "model_asleep")
    assert model.serving.idle
    model.serving.rise()
    assert model.answer(prompt=prompts[6])


def test_a_wake_that_finds_no_room_leaves_it_asleep_and_another_one_may_succeed(
    opened: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened()
    before = model.answer(prompt=prompts[4])
    model.serving.doze()

    def no_room() -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model.arena, "allocate", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        model.serving.rise()
    assert model.serving.dozing
    assert model.arena.bytes == 0
    monkeypatch.undo()
    model.serving.rise()
    assert model.answer(prompt=prompts[4]) == before


class Recorded(nn.Module):
    """Layers, a table, and an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.one = AdaptedLinear(nn.Linear(4, 4), Selection())
        self.one.add(1, Pair(torch.ones(2, 4), torch.ones(4, 2)))
        self.register_buffer("table", torch.ones(3))

    def devices(self) -> set[str]:
        pair = self.one._pairs[1]
        return {tensor.device.type for tensor in (*self.parameters(), self.table, pair.down, pair.up)}


def test_every_tensor_moves() -> None:
    model = Recorded()
    weights = Weights(model, torch.device("meta"))
    assert weights.moves
    weights.to_device()
    assert model.devices() == {"meta"}
    model = Recorded()
    weights = Weights(model, torch.device("meta"))
    weights.to_host()
    assert model.devices() == {"cpu"}
    assert not Weights(model, torch.device("cpu")).moves
