import json

import pytest

from gateway.socket_messages import Inference, parse
from gateway.socket_requests import Asker, text_request, vector_request
from mesh.embedding import MAX_INPUTS
from mesh.errors import BadRequest

ASKER = Asker(tenant="t", client="10.0.0.1")
OPTIONS = {"priority": -7, "deadline_ms": 1500, "hedge": True, "resume": False}


def inference(**fields) -> Inference:
    message = parse(json.dumps({"type": "inference", "model": "m"} | fields))
    assert isinstance(message, Inference)
    return message


def test_inputs_are_a_raw_prompt_and_messages_a_chat():
    prompt = text_request(inference(inputs="once"), ASKER)
    assert (prompt.task, prompt.prompt, prompt.messages, prompt.tenant) == ("completion", "once", None, "t")
    assert (prompt.max_tokens, prompt.temperature) == (16, 1.0)
    chat = text_request(inference(messages=[{"role": "user", "content": "hi"}]), ASKER)
    assert (chat.task, chat.messages) == ("chat", [{"role": "user", "content": "hi"}])
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.top_k) == (512, 0.7, 0.9, 50)


def test_parameters_reach_the_request():
    given = {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": "END", "max_new_tokens": 9}
    request = text_request(inference(inputs="x", parameters=given), ASKER)
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0, 0.5, 3, 7)
    assert (request.stop, request.max_tokens, request.max_length) == (["END"], 9, None)


def test_max_length_counts_the_prompt_and_the_strictest_limit_holds():
    only = text_request(inference(inputs="x", parameters={"max_length": 100}), ASKER)
    assert (only.max_tokens, only.max_length) == (100, 100)
    both = text_request(inference(inputs="x", parameters={"max_length": 100, "max_new_tokens": 5, "max_tokens": 8}), ASKER)
    assert (both.max_tokens, both.max_length) == (5, 100)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"inputs": "x", "messages": [{"role": "user", "content": "y"}]},
        {"inputs": "x", "task": "paint"},
        {"inputs": ["x", "y"]},
        {"inputs": [1, 2]},
    ],
)
def test_a_request_that_cannot_be_is_refused(fields):
    with pytest.raises(BadRequest):
        text_request(inference(**fields), ASKER)


def test_each_request_gets_its_own_id_and_seed():
    one, two = (text_request(inference(inputs="x"), ASKER) for _ in range(2))
    assert one.request_id != two.request_id
    assert one.seed != two.seed


def test_penalties_travel():
    given = {"min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -1.0, "frequency_penalty": 0.5}
    made = text_request(inference(inputs="x", parameters=given), ASKER)
    assert {name: getattr(made, name) for name in given} == given


def test_without_options_the_gateway_decides():
    request = text_request(inference(inputs="x"), ASKER)
    assert (request.priority, request.deadline_ms, request.hedge, request.resume) == (0, None, None, True)
    assert (request.affinity, request.tenant, request.client) == ("", "t", "10.0.0.1")


def test_options_reach_the_request_whatever_it_asks_for():
    embedding, _ = vector_request(inference(inputs="x", task="text-embedding", options=OPTIONS), ASKER)
    for request in (text_request(inference(inputs="x", options=OPTIONS), ASKER), embedding):
        assert {name: getattr(request, name) for name in OPTIONS} == OPTIONS
        assert (request.tenant, request.client) == ("t", "10.0.0.1")


@pytest.mark.parametrize(
    ("options", "affinity"),
    [
        ({"user": "u"}, "u"),
        ({"prompt_cache_key": "k", "user": "u"}, "k"),
        ({"prompt_cache_key": "", "user": "u"}, "u"),
        ({"user": "u" * 1000}, "u" * 256),
    ],
    ids=["user", "key before user", "an empty key", "bounded"],
)
def test_a_conversation_or_user_is_an_affinity(options, affinity):
    assert text_request(inference(inputs="x", options=options), ASKER).affinity == affinity


def test_a_request_for_vectors():
    message = inference(task="text-embedding", inputs=["a", [1, 2]], parameters={"dimensions": 8})
    request, inputs = vector_request(message, ASKER)
    assert (request.model, request.task, request.dimensions, inputs) == ("m", "embedding", 8, ["a", [1, 2]])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "inputs"),
        ({"inputs": "x", "messages": [{"role": "user", "content": "y"}]}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a", ""]}, "inputs[1]"),
        ({"inputs": ["x"] * (MAX_INPUTS + 1)}, "inputs"),
        ({"inputs": [-1]}, "inputs"),
        ({"inputs": "x", "parameters": {"dimensions": 0}}, "dimensions"),
    ],
    ids=["nothing", "messages", "no inputs", "an empty one", "too many", "no token", "no dimensions"],
)
def test_vectors_that_cannot_be_are_refused_by_name(fields, param):
    with pytest.raises(BadRequest) as caught:
        vector_request(inference(task="text-embedding", **fields), ASKER)
    assert caught.value.param == param
