"""Embeddings against the model computed by hand, one input at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from mesh.errors import Misconfigured
from mesh.messages.inference import Done, Fail

Pool = "Callable[[torch.Tensor], torch.Tensor]"
POOLS: dict[str, Any] = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.amax(0),
    "lasttoken": lambda hidden: hidden[-1],
}
FLAGS = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}


def some_ids(count: int) -> list[list[int]]:
    source = random.Random(2)
    return [[source.randrange(3, 400) for _ in range(1 + 7 * index % 50)] for index in range(count)]


def close(given: list[float], wanted: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(given), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("mode", list(POOLS))
def test_an_encoder_pools_as_its_files_say(kind: str, mode: str, make: Any, served: Any) -> None:
    made = make(kind, pooling={"word_embedding_dimension": 32, f"pooling_mode_{FLAGS[mode]}": True})
    embeddings = served(made.folder)
    assert (embeddings.ready.tasks, embeddings.ready.batching) == (["embedding"], True)
    inputs = some_ids(90)
    vectors = embeddings.vectors(*inputs)
    assert all(
        close(*pair) for pair in zip(vectors, [normalize(POOLS[mode](made.hidden(ids)), dim=0) for ids in inputs], strict=True)
    )
    # One input alone, and in a batch, is the same vector.
    assert close(embeddings.vectors(inputs[7])[0], torch.tensor(vectors[7]))
    done = embeddings.last(inputs=inputs)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (sum(map(len, inputs)), 0)
    assert embeddings.serving.load.step > 2


def test_without_a_step_that_normalises_vectors_stay_as_long_as_they_are(make: Any, served: Any) -> None:
    made = make("bert", pooling={"pooling_mode": "cls"}, steps=["Transformer", "Pooling"])
    (vector,) = served(made.folder).vectors([5, 6, 7])
    assert close(vector, made.hidden([5, 6, 7])[0])


def test_an_encoder_without_files_takes_the_mean(make: Any, served: Any) -> None:
    made = make("bert")
    assert close(served(made.folder).vectors([5, 6, 7])[0], normalize(made.hidden([5, 6, 7]).mean(0), dim=0))


def test_texts_are_tokenised_and_get_the_models_prompt(make: Any, served: Any, tokenizer: Any) -> None:
    made = make(
        "bert",
        pooling={"pooling_mode": "mean"},
        config_sentence_transformers={"prompts": {"query": "The engine "}, "default_prompt_name": "query"},
    )
    text, ids = served(made.folder).vectors("is a mesh", tokenizer("The engine is a mesh").input_ids)
    assert text == pytest.approx(ids, abs=1e-6)


def test_fewer_dimensions_are_the_first_ones_at_unit_length(make: Any, served: Any) -> None:
    embeddings = served(make("bert").folder)
    (whole,), (short,) = embeddings.vectors([5, 6]), embeddings.vectors([5, 6], dimensions=8)
    assert close(short, normalize(torch.tensor(whole[:8]), dim=0))
    assert embeddings.vectors([5, 6], dimensions=32) == [whole]


def test_a_decoder_embeds_beside_its_chat(make: Any, served: Any) -> None:
    made = make("qwen")
    embeddings = served(made.folder)
    assert embeddings.ready.tasks == ["chat", "completion", "embedding"]
    inputs = some_ids(9)
    chats = [embeddings.submit(task="completion", prompt=ids, max_tokens=12, temperature=0.0) for ids in inputs[:4]]
    embeddings.step()
    number = embeddings.submit(inputs=inputs)
    embeddings.run()
    done = embeddings.events[number][-1]
    assert isinstance(done, Done)
    vectors = embeddings.vectors(*inputs)
    assert all(close(*pair) for pair in zip(vectors, [normalize(made.hidden(ids)[-1], dim=0) for ids in inputs], strict=True))
    # The chats were not disturbed.
    for chat, ids in zip(chats, inputs[:4], strict=True):
        answer = made.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False
        )
        tokens = [token for event in embeddings.events[chat][1:-1] for token in event.token_ids]
        assert tokens == answer[0, len(ids) :].tolist()
    assert embeddings.serving.stats.completed_requests == 6
    assert embeddings.serving.load.running == embeddings.serving.load.waiting == 0


def test_a_decoder_with_the_files_of_an_embeddings_model_only_embeds(make: Any, served: Any) -> None:
    made = make("qwen", pooling={"pooling_mode_lasttoken": True})
    embeddings = served(made.folder)
    assert embeddings.ready.tasks == ["embedding"]
    assert close(embeddings.vectors([5, 6, 7])[0], normalize(made.hidden([5, 6, 7])[-1], dim=0))


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"task": "chat", "messages": [{"role": "user", "content": "Hi"}]}, "unsupported_task", "model"),
        ({"task": "completion", "prompt": "Hi"}, "unsupported_task", "model"),
        ({"inputs": []}, "invalid_request", "input"),
        ({"inputs": [[]]}, "invalid_request", "input"),
        ({"inputs": [[5], [512]]}, "invalid_request", "input"),
        ({"inputs": [[5], [5] * 65]}, "context_length_exceeded", "input"),
        ({"inputs": ["x"], "dimensions": 33}, "invalid_request", "dimensions"),
        ({"inputs": ["x"] * 2049}, "invalid_request", "input"),
        ({"inputs": ["x"], "deadline_ms": 0}, "deadline_exceeded", None),
    ],
    ids=["chat", "completion", "none", "empty", "no such token", "too long", "dimensions", "too many", "too late"],
)
def test_what_cannot_be_is_a_typed_error(make: Any, served: Any, fields: dict[str, Any], code: str, param: str | None) -> None:
    embeddings = served(make("bert").folder)
    fail = embeddings.last(**fields)
    assert isinstance(fail, Fail)
    assert (fail.code, fail.param) == (code, param)
    assert len(embeddings.vectors([5])) == 1


def test_lengths_come_from_the_model_its_files_and_the_operator(make: Any, served: Any) -> None:
    folder = make("roberta", pooling={"pooling_mode": "mean"}, sentence_bert_config={"max_seq_length": 40}).folder
    assert served(folder).ready.context_length == 40
    assert served(folder, context=20).ready.context_length == 20
    (folder / "sentence_bert_config.json").unlink()
    # Two of 64 positions are the padding's.
    assert served(folder).ready.context_length == 62
    with pytest.raises(Misconfigured, match="--context 63 is more than the 62 positions"):
        served(folder, context=63)


@pytest.mark.parametrize(
    ("pooling", "steps", "message"),
    [
        ({"pooling_mode": "mean"}, ["Transformer", "Pooling", "Dense"], "a step 'Dense', which is not known"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None, "none of mean, cls"),
        ({"pooling_mode_weightedmean_tokens": True}, None, "none of mean, cls"),
        ({"pooling_mode": "mean"}, ["Transformer"], "names no pooling"),
    ],
)
def test_steps_that_are_not_known_are_refused(make: Any, served: Any, pooling: Any, steps: Any, message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        served(make("bert", pooling=pooling, steps=steps).folder)


def test_a_cancelled_request_is_gone_and_others_are_not(make: Any, served: Any) -> None:
    embeddings = served(make("bert").folder)
    gone, kept = embeddings.submit(inputs=some_ids(200)), embeddings.submit(inputs=some_ids(3))
    embeddings.step()
    embeddings.serving.abort(gone)
    embeddings.run()
    assert embeddings.events[gone][-1].code == "cancelled"
    assert isinstance(embeddings.events[kept][-1], Done)


def test_higher_priority_goes_first(make: Any, served: Any) -> None:
    embeddings = served(make("bert").folder)
    low, high = embeddings.submit(inputs=some_ids(200)), embeddings.submit(inputs=some_ids(64), priority=1)
    embeddings.step()
    assert isinstance(embeddings.events[high][-1], Done)
    embeddings.run()
    assert isinstance(embeddings.events[low][-1], Done)


def test_an_input_that_breaks_the_model_fails_its_request_alone(make: Any, served: Any) -> None:
    embeddings = served(make("bert").folder)
    embedder = embeddings.serving._embedding.embedder
    embed = embedder.embed

    def fragile(inputs: Any, dimensions: Any) -> Any:
        if any(66 in one for one in inputs):
            raise RuntimeError("66 is too much")
        return embed(inputs, dimensions)

    embedder.embed = fragile
    bad, good = embeddings.submit(inputs=[[5], [66], [6]]), embeddings.submit(inputs=[[7]])
    embeddings.run()
    assert embeddings.events[bad][-1].kind == "BackendFailed"
    assert isinstance(embeddings.events[good][-1], Done)
    embedder.embed = lambda *_: (_ for _ in ()).throw(RuntimeError("nothing works"))
    embeddings.serving._embedding._counters.completed = 0
    embeddings.submit(inputs=[[5]])
    with pytest.raises(RuntimeError, match="embeds nothing at all"):
        embeddings.step()


def test_a_queue_that_is_full_says_so(make: Any, served: Any) -> None:
    embeddings = served(make("bert").folder)
    numbers = [embeddings.submit(inputs=[[5]]) for _ in range(257)]
    embeddings.run()
    assert embeddings.events[numbers[-1]][-1].kind == "Busy"
    assert isinstance(embeddings.events[numbers[-2]][-1], Done)
