import pytest
import torch

from node.worker.demo.batches import IGNORED, ROW_LENGTHS, TOKENS_PER_BATCH, batch


@pytest.mark.parametrize("step", range(len(ROW_LENGTHS)))
def test_every_batch_holds_the_same_number_of_tokens(demo, step):
    made = batch(demo.tokenizer, 1, step)
    assert made.ids.shape == made.labels.shape == (TOKENS_PER_BATCH // ROW_LENGTHS[step], ROW_LENGTHS[step])


def test_a_batch_is_a_function_of_seed_and_step(demo):
    assert torch.equal(batch(demo.tokenizer, 1, 7).ids, batch(demo.tokenizer, 1, 7).ids)
    assert not torch.equal(batch(demo.tokenizer, 1, 3).ids, batch(demo.tokenizer, 2, 3).ids)
    assert not torch.equal(batch(demo.tokenizer, 1, 0).ids, batch(demo.tokenizer, 1, 1).ids)


def test_only_what_the_assistant_says_is_learned(demo):
    ids, labels = batch(demo.tokenizer, 1, 2)
    assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    learned = demo.tokenizer.decode(labels[0][labels[0] != IGNORED])
    assert "<|im_end|>" in learned
    assert "<|im_start|>" not in learned


def test_a_row_is_tokenized_as_the_template_is(demo):
    row = batch(demo.tokenizer, 1, 2).ids[0].tolist()
    assert demo.tokenizer(demo.tokenizer.decode(row)).input_ids[:500] == row[:500]
