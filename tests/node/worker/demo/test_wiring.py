import pytest
import torch

from node.worker.demo.tokenizer import build_tokenizer
from node.worker.demo.train import build_model


@pytest.fixture(scope="module")
def fresh():
    model = build_model(build_tokenizer(3, vocabulary=300, conversations=50), seed=1).eval()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def seen(fresh):
    """Twenty tokens, twice, as an untrained model sees them."""
    once = torch.randperm(250, generator=torch.Generator().manual_seed(1))[:20] + 3
    ids = torch.cat([once, once])[None]
    with torch.inference_mode():
        return ids[0], fresh(ids, output_attentions=True)


def test_one_head_looks_at_the_token_before(seen):
    ids, output = seen
    positions = torch.arange(1, len(ids))
    assert output.attentions[0][0, 0][positions, positions - 1].mean() > 0.9


def test_an_untrained_model_already_prefers_what_followed_last_time(seen):
    ids, output = seen
    best = output.logits[0, 20:39].topk(2).indices  # the other one is the current token: embeddings are tied
    assert (best == ids[21:40, None]).any(-1).float().mean() > 0.8
