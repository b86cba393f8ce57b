import json
import math

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from node.models import DEMO_MODEL_ID, demo_model_path
from node.worker.demo import train
from node.worker.demo.tokenizer import build_tokenizer


@pytest.fixture
def tokenizer():
    return build_tokenizer(3, vocabulary=300, conversations=50)


@pytest.fixture
def short_batches(monkeypatch):
    monkeypatch.setattr("node.worker.demo.batches.TOKENS_PER_BATCH", 256)
    monkeypatch.setattr("node.worker.demo.batches.ROW_LENGTHS", (64,))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_weights(tokenizer, short_batches):
    first, again, other = (train.Training(tokenizer, seed=seed, steps=10) for seed in (1, 1, 2))
    for training in (first, again, other):
        training.advance()
        training.advance()
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, short_batches, tmp_path):
    whole, broken = (train.Training(tokenizer, seed=1, steps=10) for _ in range(2))
    whole.advance()
    broken.advance()
    broken.save(tmp_path / "checkpoint.pt")
    resumed = train.Training(tokenizer, seed=1, steps=10)
    resumed.restore(tmp_path / "checkpoint.pt")
    whole.advance()
    resumed.advance()
    assert same_weights(whole, resumed)
    assert resumed.step == 2
    with pytest.raises(ValueError, match="belongs to seed and steps"):
        train.Training(tokenizer, seed=1, steps=11).restore(tmp_path / "checkpoint.pt")


def test_training_lowers_the_loss_and_exports_a_model(short_batches, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "build_tokenizer", lambda seed: build_tokenizer(seed, vocabulary=300, conversations=50))
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 10)
    training = train.train(tmp_path, seed=1, steps=20)
    assert training.loss < math.log(300)
    assert "step 20/20" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint.pt").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["infermesh_dtype"] == "float32"
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "tokenizer.json").exists()


def test_the_rate_rises_and_falls():
    assert train.rate(0, 1000) < train.rate(100, 1000) == 1.0 > train.rate(999, 1000) > 0


def test_the_shipped_model_is_small_and_safe():
    folder = demo_model_path()
    assert folder.name == DEMO_MODEL_ID
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "README.md"} <= names
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}
    assert 2_000_000 < (folder / "model.safetensors").stat().st_size < 4_000_000
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 (it is no dict)
    assert {tensor.dtype for tensor in shapes} == {torch.bfloat16}
    assert 1_300_000 < sum(tensor.numel() for tensor in shapes) < 1_500_000
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "llama"
    assert config.max_position_embeddings == 2048
    assert config.infermesh_dtype == "float32"
