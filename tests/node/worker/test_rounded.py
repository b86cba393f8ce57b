"""Models whose weights are kept in int8: what they answer, what they are called, and where they are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mesh.errors import Misconfigured
from node.models import demo_model_path
from node.worker import loader
from node.worker.device import pick_device
from node.worker.fused.decoder import Decoder
from node.worker.fused.int8 import Quantized, quantized, quantizes
from node.worker.loader import Options, load
from node.worker.opening import open_model
from tests.node.worker.adapters import save_adapter
from tests.node.worker.architectures import build, save
from tests.node.worker.fused.test_decoder import whole_prompt

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not quantizes(), reason="this processor or this torch cannot compute with int8 weights")

QUESTIONS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What colour is grass?": "Grass is green.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What day comes after Monday?": "Tuesday comes after Monday.",
    "Count from 1 to 10.": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    "What is a node?": "A node is a peer that runs models and answers requests.",
    "Repeat: banana": "banana",
}


def options(path: Path, **fields: Any) -> Options:
    return Options(path=path, device="cpu", weights="int8", **{"dtype": "float32", "slots": 8, **fields})


def engine_of(path: Path, **fields: Any) -> Any:
    return load(options(path, **fields), lambda _: None)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_model_still_knows_its_answers(dtype: str, drive: Any) -> None:
    driver = drive(engine_of(demo_model_path(), dtype=dtype))
    numbers = {
        driver.submit(messages=[{"role": "user", "content": question}], max_tokens=60): answer
        for question, answer in QUESTIONS.items()
    }
    driver.run()
    assert [driver.outcomes[number].text for number in numbers] == list(numbers.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral-window"])
def test_the_decoder_computes_the_rounded_weights(kind: str) -> None:
    model, rounded = build(kind), build(kind)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear):
            whole, scales = quantized(module.weight.detach())
            # Not in place: the head may be the embeddings, which are not rounded.
            module.weight = torch.nn.Parameter(whole * scales[:, None])
    tokens = torch.arange(3, 27)
    with torch.inference_mode():
        expected = rounded(tokens[None]).logits[0]
        as_it_was = model(tokens[None]).logits[0]
        found = whole_prompt(model, Decoder(model, Quantized()), tokens)
    spread = float(expected.max() - expected.min())
    assert float((found - expected).abs().max()) < 1e-3 * spread
    assert float((found - as_it_was).abs().max()) < 0.1 * spread


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral", "qwen2-moe"])
def test_an_answer_does_not_depend_on_the_batch(kind: str, tmp_path: Path, tokenizer: Any, drive: Any) -> None:
    save(tmp_path, kind, tokenizer)
    prompts = [[7 + index, *range(20, 25 + 3 * index)] for index in range(8)]
    together, alone = drive(engine_of(tmp_path)), drive(engine_of(tmp_path))
    numbers = [together.submit(prompt=prompt, max_tokens=8) for prompt in prompts]
    together.run()
    for number, prompt in zip(numbers, prompts, strict=True):
        assert together.outcomes[number].ids == alone.answer(prompt=prompt, max_tokens=8).ids


def test_other_weights_have_other_names(models_folder: Path) -> None:
    rounded = load(options(models_folder / "llama"), lambda _: None)[1]
    plain = load(replace(options(models_folder / "llama"), weights="auto"), lambda _: None)[1]
    assert (rounded.weights, plain.weights) == ("int8", "")
    assert (rounded.dtype, rounded.architecture) == (plain.dtype, plain.architecture)
    assert rounded.weights_digest != plain.weights_digest
    assert len(rounded.weights_digest) == len(plain.weights_digest)
    assert rounded.numerics != plain.numerics
    assert rounded.numerics == load(options(models_folder / "llama"), lambda _: None)[1].numerics


def test_adapters_beside_it_are_not_rounded(tmp_path: Path, tokenizer: Any, drive: Any) -> None:
    (tmp_path / "base").mkdir()
    save_adapter(tmp_path / "one", save(tmp_path / "base", "llama", tokenizer))
    driver = drive(engine_of(tmp_path / "base", adapters={"one": tmp_path / "one"}))
    by_base, by_adapter = (driver.answer(model=name, prompt=[5, 6, 7], max_tokens=10).ids for name in ("m", "one"))
    assert by_base != by_adapter
    numbers = [driver.submit(model=name, prompt=[5, 6, 7], max_tokens=10) for name in ("one", "m")]
    driver.run()
    assert [driver.outcomes[number].ids for number in numbers] == [by_adapter, by_base]


def test_what_cannot_be_rounded_is_refused(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = options(models_folder / "llama")
    with pytest.raises(Misconfigured, match="--weights int4 is not known; use auto or int8"):
        load(replace(llama, weights="int4"), lambda _: None)
    with pytest.raises(Misconfigured, match=r"int8 does not suit the model .* its attention cannot be replaced; leave it out"):
        load(options(models_folder / "stablelm"), lambda _: None)
    with monkeypatch.context() as changed:
        changed.setattr(loader, "ROUNDED_AGREEMENT", 1e-6)
        with pytest.raises(Misconfigured, match=r"its logits differ by .* of their spread; leave it out"):
            load(llama, lambda _: None)
    with monkeypatch.context() as changed:
        changed.setattr(loader, "quantizes", lambda: False)
        with pytest.raises(Misconfigured, match="needs a processor with VNNI"):
            load(llama, lambda _: None)
    accelerator = replace(pick_device("cpu"), device=torch.device("cuda"), name="a GPU")
    monkeypatch.setattr(loader, "pick_device", lambda _: accelerator)
    with pytest.raises(Misconfigured, match="is for the CPU, and the model runs on a GPU"):
        load(llama, lambda _: None)


def test_a_model_for_embeddings_is_refused(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.opening._is_for_embeddings", lambda _: True)
    with pytest.raises(Misconfigured, match="this one embeds; leave it out"):
        open_model(options(models_folder / "llama"), lambda _: None)
