"""Tiny random models with a tokenizer of their own, made once per session."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesh.messages.inference import Accepted, Delta, Done, Event, Fail, InferenceRequest
from node.worker.engine import Engine, Limits
from node.worker.loader import Options, load
from tests.node.worker.tiny import KINDS, make_tokenizer, save_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two threads that wait for each other gain nothing on models this small and lose much on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    for name in KINDS:
        save_model(folder / name, name, tokenizer)
    return folder


@pytest.fixture(scope="session")
def tokenizer(models_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(models_folder / "llama")


@dataclass
class Outcome:
    """Everything that one request was answered with."""

    events: list[Event]
    prior: int = 0
    """Tokens that were given out before."""

    @property
    def ids(self) -> list[int]:
        return [token for event in self.events if isinstance(event, Delta) for token in event.token_ids]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def last(self) -> Event:
        return self.events[-1]

    def check_shape(self) -> None:
        """At most one Accepted, first; deltas without gaps; exactly one terminal event, last."""
        middle = self.events[1:-1] if isinstance(self.events[0], Accepted) else self.events[:-1]
        assert isinstance(self.last, Done | Fail)
        assert all(isinstance(event, Delta) for event in middle)
        offset = self.prior
        for event in middle:
            assert isinstance(event, Delta)
            assert event.offset == offset
            offset += len(event.token_ids)


class Driver:
    """Drives an engine in process: submits at given steps, collects what comes out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outcomes: dict[int, Outcome] = {}
        self.batches: list[int] = []
        self._next = 0

    def submit(self, **fields: Any) -> int:
        number, self._next = self._next, self._next + 1
        fields = {
            "task": "completion" if "prompt" in fields else "chat",
            "max_tokens": 24,
            "temperature": 0.0,
            "model": "m",
            **fields,
        }
        self.outcomes[number] = Outcome([], prior=sum(map(len, fields.get("prior", []))))
        self.engine.submit(number, InferenceRequest(request_id=f"r{number}", **fields))
        return number

    def step(self) -> bool:
        step = self.engine.step()
        if step is None:
            return False
        assert step.load == self.engine.load
        self.batches.append(step.load.running)
        for number, event in step.events:
            self.outcomes[number].events.append(event)
        return True

    def run(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if self.engine.idle:
                break
            assert self.step()
        assert self.engine.idle
        for outcome in self.outcomes.values():
            outcome.check_shape()

    def answer(self, **fields: Any) -> Outcome:
        """One request, alone, to its end."""
        number = self.submit(**fields)
        self.run()
        return self.outcomes[number]


@pytest.fixture(scope="session")
def drive() -> type[Driver]:
    return Driver


@pytest.fixture(scope="session")
def make_driver(models_folder: Path) -> Any:
    def make(
        name: str = "llama", *, slots: int = 16, budget: int = 512, queue: int = 256, stretch: float = 0.0, **options: Any
    ) -> Driver:
        # Without a stretch nothing depends on how fast this machine is.
        limits = Limits(budget=budget, queue=queue, stretch=stretch)
        engine, _ = load(
            Options(path=models_folder / name, device="cpu", dtype="float32", slots=slots, limits=limits, **options),
            lambda _: None,
        )
        return Driver(engine)

    return make


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Random prompts of many lengths; none holds a special token."""
    source = random.Random(7)
    return [
        [source.randrange(3, 400) for _ in range(length)] for length in (1, 2, 3, 5, 8, 13, 21, 34, 55, 4, 89, 17, 40, 6, 70, 11)
    ]


@pytest.fixture(scope="session")
def reference(models_folder: Path) -> Any:
    """Greedy ids by transformers' `generate`, and the logits it chose from."""
    loaded: dict[str, Any] = {}

    def generate(name: str, prompt: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
        if name not in loaded:
            loaded[name] = AutoModelForCausalLM.from_pretrained(models_folder / name, dtype=torch.float32).eval()
        answer = loaded[name].generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return answer.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in answer.logits]

    return generate
