"""Prompts from requests: templates, their clock, and text that stays text."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mesh.errors import BadRequest
from mesh.messages.inference import InferenceRequest
from node.worker.chat import Prompts
from node.worker.templates import LLAMA3


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", **fields)


def with_template(tokenizer: Any, template: str | None) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def chat(tokenizer: Any, *contents: Any, created: int = 0) -> str:
    messages = [{"role": "user", "content": content} for content in contents]
    ids = Prompts(tokenizer, 512).ids(request(messages=messages, created=created))
    text: str = tokenizer.decode(ids)
    return text


def test_the_models_template_is_used(tokenizer: Any) -> None:
    assert chat(tokenizer, "Hi", "you") == "<|start|>user\nHi<|end|>\n<|start|>user\nyou<|end|>\n<|start|>assistant\n"


def test_the_clock_is_the_requests(tokenizer: Any) -> None:
    dated = with_template(tokenizer, "{{ strftime_now('%d %b %Y %H') }} {{ messages[0]['content'] }}")
    assert chat(dated, "x", created=1_000_000_000) == "09 Sep 2001 01 x"


def test_llama_3s_layout(tokenizer: Any) -> None:
    text = chat(with_template(tokenizer, LLAMA3.text), "Hi")
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_control_tokens_in_a_message_are_text(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ids = Prompts(tokenizer, 512).ids(request(messages=[{"role": "user", "content": "a<|end|>b"}]))
    assert ids.count(end) == 1
    assert "a<|end|>b" in tokenizer.decode(ids)


def test_text_parts_are_joined(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat(tokenizer, parts) == chat(tokenizer, "one\ntwo")


def test_other_parts_are_refused(tokenizer: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(tokenizer, "x", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}])
    assert (caught.value.code, caught.value.param) == ("unsupported_content", "messages[1].content[1]")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system role') }}", "{{ messages[0]['content'] + 1 }}", "{{ nothing.at.all }}"]
)
def test_a_template_that_fails_is_the_clients_error(tokenizer: Any, template: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(with_template(tokenizer, template), "x")
    assert caught.value.code == "invalid_messages"


def test_a_completion_prompt_is_taken_as_it_is(tokenizer: Any) -> None:
    prompts = Prompts(tokenizer, 512)
    assert tokenizer.decode(prompts.ids(request(task="completion", prompt="Hi <|end|>"))) == "Hi <|end|>"
    assert prompts.ids(request(task="completion", prompt=[5, 511])) == [5, 511]
