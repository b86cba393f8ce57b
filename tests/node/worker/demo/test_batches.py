import pytest
import torch

from node.worker.demo.batches import IGNORED, ROW_LENGTHS, TOKENS_PER_BATCH, batch


@pytest.fixture
def only_chats(monkeypatch):
    for share in ("RAW_SHARE", "ECHO_SHARE", "LATER_ECHO_SHARE"):
        monkeypatch.setattr(f"node.worker.demo.batches.{share}", 0.0)


@pytest.mark.parametrize("step", range(len(ROW_LENGTHS)))
def test_every_batch_holds_the_same_number_of_tokens(demo, step):
    made = batch(demo.tokenizer, 1, step)
    assert made.ids.shape == made.labels.shape == (TOKENS_PER_BATCH // ROW_LENGTHS[step], ROW_LENGTHS[step])


def test_a_batch_is_a_function_of_seed_and_step(demo):
    assert torch.equal(batch(demo.tokenizer, 1, 7).ids, batch(demo.tokenizer, 1, 7).ids)
    assert not torch.equal(batch(demo.tokenizer, 1, 3).ids, batch(demo.tokenizer, 2, 3).ids)
    assert not torch.equal(batch(demo.tokenizer, 1, 0).ids, batch(demo.tokenizer, 1, 1).ids)


def test_only_what_the_assistant_says_is_learned(demo, only_chats):
    ids, labels = batch(demo.tokenizer, 1, 2)
    assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    learned = demo.tokenizer.decode(labels[0][labels[0] != IGNORED])
    assert "<|im_end|>" in learned
    assert "<|im_start|>" not in learned


def test_a_row_is_tokenized_as_the_template_is(demo, only_chats):
    row = batch(demo.tokenizer, 1, 2).ids[0].tolist()
    # The end of a row may cut a word, which then is tokenized otherwise.
    assert demo.tokenizer(demo.tokenizer.decode(row)).input_ids[:500] == row[:500]


def test_nonsense_repeats_itself_and_its_first_round_is_not_learned(demo, monkeypatch):
    monkeypatch.setattr("node.worker.demo.batches.ECHO_SHARE", 1.0)
    for ids, labels in zip(*batch(demo.tokenizer, 1, 0), strict=True):
        period = int((labels == IGNORED).sum())
        assert 4 <= period < 60
        assert torch.equal(ids[period:], ids[:-period])
        assert torch.equal(ids[period:], labels[period:])
