from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import BertConfig, BertModel, Qwen3Config, Qwen3ForCausalLM, RobertaConfig, RobertaModel

from mesh.messages.inference import Done, Event, InferenceRequest
from mesh.vectors import unpack
from node.worker.loader import Options
from node.worker.opening import open_model
from tests.node.worker.architectures import SIZES

if TYPE_CHECKING:
    from pathlib import Path

BERT = {**SIZES, "max_position_embeddings": 64}


def bert() -> Any:
    return BertModel(BertConfig(**BERT))


def roberta() -> Any:
    return RobertaModel(RobertaConfig(**{**BERT, "pad_token_id": 1, "type_vocab_size": 1}))


def qwen() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


MODELS = {"bert": bert, "roberta": roberta, "qwen": qwen}


class Embeddings:
    """A served model, driven in process."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.serving, self.ready = open_model(Options(path=folder, device="cpu", dtype="float32", **options), lambda _: None)
        self.events: dict[int, list[Event]] = {}
        self._next = 0

    def submit(self, **fields: Any) -> int:
        number, self._next = self._next, self._next + 1
        self.events[number] = []
        request = InferenceRequest(request_id=f"r{number}", model="m", **{"task": "embedding", **fields})
        self.serving.take(self.serving.intake.beside("quick").prepare(number, request))
        return number

    def run(self, steps: int = 2000) -> None:
        for _ in range(steps):
            if self.serving.idle:
                return
            self.step()
        raise AssertionError("it never ends")

    def step(self) -> None:
        step = self.serving.step()
        assert step is not None
        for number, event in step.events:
            self.events[number].append(event)

    def last(self, **fields: Any) -> Event:
        number = self.submit(**fields)
        self.run()
        return self.events[number][-1]

    def vectors(self, *inputs: str | list[int], **fields: Any) -> list[list[float]]:
        done = self.last(inputs=list(inputs), **fields)
        assert isinstance(done, Done), done
        assert done.embeddings is not None
        return [unpack(vector) for vector in done.embeddings]


@dataclass
class Made:
    """A model directory, and the model in it."""

    folder: Path
    model: Any

    def hidden(self, ids: list[int]) -> torch.Tensor:
        """What the model makes of one input, alone."""
        body = getattr(self.model, "base_model", self.model)
        with torch.inference_mode():
            return torch.as_tensor(body(input_ids=torch.tensor([ids])).last_hidden_state[0])


@pytest.fixture
def make(tmp_path: Path, tokenizer: Any) -> Any:
    def build(kind: str, *, pooling: dict[str, Any] | None = None, steps: list[str] | None = None, **extra: Any) -> Made:
        torch.manual_seed(5)
        model = MODELS[kind]().eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if pooling is not None:
            (tmp_path / "1_Pooling").mkdir()
            (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
            paths = {"Transformer": "", "Pooling": "1_Pooling"}
            modules = [
                {"idx": i, "name": str(i), "path": paths.get(step, f"{i}_{step}"), "type": f"sentence_transformers.models.{step}"}
                for i, step in enumerate(steps or ["Transformer", "Pooling", "Normalize"])
            ]
            (tmp_path / "modules.json").write_text(json.dumps(modules))
        for name, content in extra.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return Made(tmp_path, model)

    return build


@pytest.fixture
def served() -> type[Embeddings]:
    return Embeddings
