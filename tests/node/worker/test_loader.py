"""Loading: what Ready says, progress, memory, and models that are refused or run on generate."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from mesh.errors import Misconfigured
from node.worker import loader
from node.worker.fused.way import Way, fastest
from node.worker.loader import Options, load
from node.worker.runner import SlotRunner

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.messages.worker import Loading


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models_folder / "llama", tmp_path / "model")


def ignore(_: Loading) -> None:
    pass


def test_ready_describes_the_model(models_folder: Path) -> None:
    seen: list[Loading] = []
    engine, ready = load(Options(path=models_folder / "llama", device="cpu", dtype="float32"), seen.append)
    assert (ready.context_length, ready.vocabulary, ready.slots, ready.dtype) == (512, 512, 16, "float32")
    assert (ready.architecture, ready.device, ready.batching) == ("LlamaForCausalLM", "cpu", True)
    assert ready.parameters > 100_000
    assert ready.weights_digest
    assert engine.idle
    weights = [message for message in seen if message.phase == "weights"]
    assert weights[-1].done == weights[-1].total > 10
    assert [message.done for message in weights] == sorted(message.done for message in weights)


def test_numerics_differ_with_the_dtype_and_not_with_the_place(models_folder: Path, folder: Path) -> None:
    def numerics(path: Path, dtype: str) -> str:
        return load(Options(path=path, device="cpu", dtype=dtype), ignore)[1].numerics

    assert numerics(folder, "float32") == numerics(models_folder / "llama", "float32") != numerics(folder, "bfloat16")


def test_a_missing_tensor_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Misconfigured, match=r"lack 1 tensors.*up_proj"):
        load(Options(path=folder, device="cpu"), ignore)


def test_weights_of_another_shape_are_refused_by_name(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] * 2}))
    with pytest.raises(Misconfigured, match=r"do not fit its config.json \(model\.layers\.0\.mlp\.\w+\.weight has another shape"):
        load(Options(path=folder, device="cpu"), ignore)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(Misconfigured, match=r"tokenizer of .* cannot be loaded \(\w+: .*tokenizer files into it again"):
        load(Options(path=folder, device="cpu"), ignore)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", {"model_type": "unheard-of"}, "cannot be loaded"),
        ("config.json", {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}}, "cannot be loaded"),
        ("tokenizer.json", {"version": "1.0"}, "tokenizer of .* cannot be loaded"),
    ],
)
def test_files_that_make_no_sense_are_refused(folder: Path, name: str, content: dict[str, Any], message: str) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the model ran')")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(Misconfigured, match=message):
        load(Options(path=folder, device="cpu"), ignore)


def test_a_context_beyond_the_model_is_refused(models_folder: Path) -> None:
    with pytest.raises(Misconfigured, match="513 is more than the 512"):
        load(Options(path=models_folder / "llama", device="cpu", context=513), ignore)


def test_the_cache_is_what_fits_and_the_log_tells(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slot = 2 * 3 * 2 * 512 * 16 * 4  # keys and values, layers, heads, positions, head size, bytes
    caplog.set_level("INFO")

    def with_memory(memory: float, **options: Any) -> tuple[int, int, int]:
        monkeypatch.setattr(loader, "free_memory", lambda _: int(memory / loader.MEMORY_SHARE))
        engine, ready = load(Options(path=models_folder / "llama", device="cpu", dtype="float32", **options), ignore)
        assert isinstance(engine._runner, SlotRunner)
        assert engine._runner.arena.keys.nbytes * 2 <= memory + slot
        return ready.slots, ready.context_length, engine.stats.cache.total_capacity

    assert with_memory(100 * slot) == (16, 512, 16 * 512)
    assert "12 MiB: 8192 tokens for running requests (16 times the context of 512), and 8192 tokens of prefixes" in caplog.text
    assert with_memory(5.5 * slot) == (16, 512, 768)
    assert "2048 tokens for running requests" in caplog.text
    assert with_memory(1.0 * slot) == (16, 512, 0)
    assert with_memory(0.6 * slot) == (16, 256, 51)
    assert with_memory(100 * slot, cache_mib=1) == (16, 512, 512)
    with pytest.raises(Misconfigured, match="use a smaller --context"):
        with_memory(0.6 * slot, context=512)


def test_end_tokens_are_all_that_are_named(models_folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(models_folder / "llama")
    model.generation_config.eos_token_id = [5, 6]
    model.config.eos_token_id = 7
    assert loader.end_tokens(model, tokenizer) == {5, 6, 7, tokenizer.eos_token_id}


def test_a_recurrent_model_runs_on_generate(
    models_folder: Path, tmp_path: Path, drive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = shutil.copytree(models_folder / "llama", tmp_path / "mamba")
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5)
    MambaForCausalLM(config).save_pretrained(path)
    engine, ready = load(Options(path=path, device="cpu", dtype="float32"), ignore)
    assert (ready.batching, ready.slots) == (False, 1)
    assert "plain generate" in caplog.text
    assert engine._runner.keeps_state
    _check_mamba(drive(engine), path)
    engine._runner.keeps_state = False
    _check_mamba(drive(engine), path)


def _check_mamba(driver: Any, path: Path) -> None:
    numbers = [driver.submit(prompt=prompt, max_tokens=10) for prompt in ([5, 6, 7], [9])]
    driver.run()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for number, prompt in zip(numbers, ([5, 6, 7], [9]), strict=True):
        ids = torch.tensor([prompt])
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0)
        assert driver.outcomes[number].ids == answer[0, len(prompt) :].tolist()


class Sabotage:
    """Stands for modelling code with a peculiarity that no configuration tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
        from node.worker import attention

        original = attention._prefill
        monkeypatch.setattr(attention, "_prefill", lambda *args: original(*args) * scale)


@pytest.mark.parametrize(("scale", "batching"), [(1.0, True), (1.01, False)])
def test_a_model_that_slot_attention_gets_wrong_runs_on_generate(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch, scale: float, batching: bool
) -> None:
    Sabotage(monkeypatch, scale)
    _, ready = load(Options(path=models_folder / "llama", device="cpu", dtype="float32"), ignore)
    assert ready.batching is batching


def test_a_fast_way_that_is_wrong_is_not_taken(
    models_folder: Path, drive: Any, reference: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(model: Any) -> Way:
        forward = fastest(model).forward
        return Way("wrong", lambda *step: -forward(*step))

    monkeypatch.setattr(loader, "fastest", wrong)
    engine, ready = load(Options(path=models_folder / "llama", dtype="float32", slots=2), ignore)
    assert "the fast way of computing this model is not used" in caplog.text
    ids, _ = reference("llama", [5, 6, 7], 8)
    assert drive(engine).answer(prompt=[5, 6, 7], max_tokens=8).ids == ids
    monkeypatch.undo()
    assert load(Options(path=models_folder / "llama", dtype="float32", slots=2), ignore)[1].numerics != ready.numerics
