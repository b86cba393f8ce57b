"""Adapters beside their model against models with the adapter merged in."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mesh.errors import Misconfigured
from mesh.messages.inference import Fail
from node.worker.loader import Options, load
from tests.node.worker.adapters import merged, save_adapter
from tests.node.worker.architectures import save
from tests.node.worker.greedy import flips

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 10


def some_prompts(count: int) -> list[list[int]]:
    source = random.Random(4)
    return [[source.randrange(3, 400) for _ in range(2 + 5 * index % 40)] for index in range(count)]


def generated(model: Any, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=COUNT,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return answer.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in answer.logits]


class Beside:
    """A model with adapters beside it, and each of them merged."""

    def __init__(
        self, folder: Path, kind: str, tokenizer: Any, drive: Any, *, slots: int = 16, **configs: dict[str, Any]
    ) -> None:
        (folder / "base").mkdir()
        base = save(folder / "base", kind, tokenizer)
        self.models = {"m": base}
        for index, (name, config) in enumerate(configs.items()):
            scale, scales = config.pop("scale", 2.0), config.pop("scales", None)
            save_adapter(folder / name, base, seed=index + 1, **config)
            self.models[name] = merged(base, folder / name, scale=scale, scales=scales)
        adapters = {name: folder / name for name in configs}
        options = Options(path=folder / "base", device="cpu", dtype="float32", slots=slots, adapters=adapters)
        engine, self.ready = load(options, lambda _: None)
        self.driver = drive(engine)


@pytest.fixture
def beside(tmp_path: Path, tokenizer: Any, drive: Any) -> Any:
    return lambda kind, **options: Beside(tmp_path, kind, tokenizer, drive, **options)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_rows_of_different_adapters_in_one_step_are_exact(kind: str, beside: Any) -> None:
    made = beside(kind, one={}, other={"rank": 2, "use_rslora": True, "scale": 4 / 2**0.5})
    names = ["m", "one", "other", "one", "m", "other"] * 3
    prompts = some_prompts(len(names))
    numbers = []
    for index, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        numbers.append(made.driver.submit(model=name, prompt=prompt, max_tokens=COUNT))
        if index % 5 == 4:
            made.driver.step()
    made.driver.run()
    assert max(made.driver.batches) > 12
    answers = [made.driver.outcomes[number].ids for number in numbers]
    flipped = sum(
        flips(generated(made.models[name], prompt), answer) for name, prompt, answer in zip(names, prompts, answers, strict=True)
    )
    assert flipped <= 1
    # The adapters do change something.
    assert answers[1] != generated(made.models["m"], prompts[1])[0]
    assert set(made.ready.adapters) == {"one", "other"}
    assert made.ready.adapters["one"] != made.ready.adapters["other"]


def test_a_prefix_that_another_adapter_computed_is_not_used(beside: Any) -> None:
    made = beside("llama", one={})
    prompt = some_prompts(8)[7] * 2
    for name in ("m", "one", "m", "one"):
        outcome = made.driver.answer(model=name, prompt=prompt, max_tokens=COUNT)
        assert flips(generated(made.models[name], prompt), outcome.ids) == 0
    stats = made.driver.engine.stats.cache
    assert (stats.hits, stats.misses) == (2, 2)


def test_an_answer_goes_on_behind_what_another_node_gave(beside: Any) -> None:
    made = beside("llama", one={})
    (prompt,) = some_prompts(1)
    whole = made.driver.answer(model="one", prompt=prompt, max_tokens=COUNT).ids
    resumed = made.driver.answer(model="one", prompt=prompt, max_tokens=COUNT, prior=[whole[:4]]).ids
    assert whole[:4] + resumed == whole


def test_scales_of_single_modules_count(beside: Any) -> None:
    made = beside("llama", one={"alpha_pattern": {"q_proj": 2}, "scales": {"q_proj": 0.5}})
    prompt = some_prompts(3)[2]
    assert flips(generated(made.models["one"], prompt), made.driver.answer(model="one", prompt=prompt, max_tokens=COUNT).ids) == 0


def test_a_model_on_generate_has_adapters_too(beside: Any) -> None:
    made = beside("stablelm", one={})
    assert made.ready.batching is False
    prompts = some_prompts(4)
    for name, prompt in zip(["m", "one", "m", "one"], prompts, strict=True):
        assert (
            flips(generated(made.models[name], prompt), made.driver.answer(model=name, prompt=prompt, max_tokens=COUNT).ids) == 0
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "all", "modules_to_save": ["lm_head"]}, "uses modules_to_save, bias"),
        ({"targets": ("lm_head",)}, "changes lm_head, which is no linear layer inside"),
    ],
)
def test_other_kinds_are_refused_by_name(beside: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        beside("llama", one=config)


def spoil(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def missing_half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(key for key in tensors if "lora_B" in key)]


def other_model(tensors: dict[str, torch.Tensor]) -> None:
    for key in list(tensors):
        tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = torch.zeros(tensors[key].shape[0] + 1, tensors[key].shape[1])


def more_than_lora(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_half, "do not belong together"),
        (other_model, "which the model lacks; it is for another model"),
        (other_shape, "has another shape for"),
        (more_than_lora, "lora_embedding_A, which is no part of a plain LoRA"),
    ],
)
def test_weights_that_do_not_fit_are_refused(beside: Any, tmp_path: Path, change: Any, message: str) -> None:
    made = beside("llama", one={})
    spoil(tmp_path / "one", change)
    options = Options(path=tmp_path / "base", device="cpu", dtype="float32", adapters={"one": tmp_path / "one"})
    with pytest.raises(Misconfigured, match=message):
        load(options, lambda _: None)
    assert not isinstance(made.driver.answer(model="one", prompt=[5], max_tokens=1).last, Fail)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("adapter_config.json", "[]", "does not hold an object"), ("adapter_model.safetensors", "x", "cannot be read")],
)
def test_broken_files_are_refused(beside: Any, tmp_path: Path, name: str, content: str, message: str) -> None:
    beside("llama", one={})
    (tmp_path / "one" / name).write_text(content)
    options = Options(path=tmp_path / "base", device="cpu", dtype="float32", adapters={"one": tmp_path / "one"})
    with pytest.raises(Misconfigured, match=message):
        load(options, lambda _: None)
    (tmp_path / "one" / name).unlink()
    with pytest.raises(Misconfigured, match=r"cannot be read|pickled adapters are never loaded"):
        load(options, lambda _: None)
