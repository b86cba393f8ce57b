"""OpenAI's own client, unmodified, against a real node: everything that can be asked of an answer.

The model is tiny and random, so what must come out comes from grammars, biases and seeds, never from what it knows.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import openai
import pydantic
import pytest
import trio

from tests.tiny import TOOL_TEMPLATE, save_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Köln?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


class Place(pydantic.BaseModel):
    """What `parse` must return."""

    model_config = pydantic.ConfigDict(extra="forbid")
    kind: str = pydantic.Field(max_length=4)
    open: bool


async def test_the_openai_client_gets_what_it_asks_for(fleet: Any, http: Any, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny", template=TOOL_TEMPLATE)
    node = await fleet.node("--no-mdns", "--model", f"tiny={tmp_path / 'tiny'}", "--device", "cpu")
    url = (await http.get(f"{node.url}/info")).json()["url"]
    # One node for all: starting one costs more than everything that is asked of it.
    await trio.to_thread.run_sync(_ask_everything, f"{url}/v1")


def _ask_everything(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for check in (
            _several_answers, _stop_strings, _logprobs, _completion_extras, _formats, _tools, _streamed_tools, _tool_results,
            _refusals,
        ):  # fmt: skip
            check(client)


def _several_answers(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES, "n": 3, "seed": 5, "max_tokens": 8, "temperature": 1}
    reply = client.chat.completions.create(**common)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert reply.usage is not None
    assert 3 <= reply.usage.completion_tokens <= 24
    streamed, reasons = ["", "", ""], {}
    usage = None
    for chunk in client.chat.completions.create(**common, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert reasons == {choice.index: choice.finish_reason for choice in reply.choices}
    assert usage is not None
    assert usage.completion_tokens == reply.usage.completion_tokens
    alone = client.chat.completions.create(**{**common, "n": 1})
    assert alone.choices[0].message.content == texts[0]


def _stop_strings(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    text = client.chat.completions.create(**common).choices[0].message.content
    assert text
    stop = text[3:6]
    stopped = client.chat.completions.create(**common, stop=[stop]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    chunks = client.chat.completions.create(**common, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.index(stop)]


def _logprobs(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**common).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 6
    for token in content:
        assert token.token == token.top_logprobs[0].token
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
    told = [token for token in content if token.bytes is not None]
    assert b"".join(bytes(token.bytes or ()) for token in told).decode(errors="replace") == choice.message.content
    streamed = [
        token
        for chunk in client.chat.completions.create(**common, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == content


def _completion_extras(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "prompt": "A mesh", "temperature": 0, "max_tokens": 5}
    plain = client.completions.create(**common).choices[0].text
    assert client.completions.create(**common, echo=True).choices[0].text == "A mesh" + plain
    scored = client.completions.create(**common, logprobs=2).choices[0].logprobs
    assert scored is not None
    assert len(scored.tokens or ()) == len(scored.token_logprobs or ()) == len(scored.text_offset or ()) == 5
    assert all(len(options) <= 2 for options in scored.top_logprobs or ())
    several = client.completions.create(**{**common, "temperature": 1}, n=2, seed=1)
    assert len({choice.text for choice in several.choices}) == 2
    biased = client.completions.create(**common, logit_bias={"77": 100}, presence_penalty=0.5, frequency_penalty=0.1, logprobs=0)
    assert biased.choices[0].logprobs is not None
    assert len(set(biased.choices[0].logprobs.tokens or ())) == 1


def _formats(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 1, "seed": 2, "max_tokens": 200}
    parsed = client.chat.completions.parse(**common, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)
    chosen = client.chat.completions.create(**common, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert chosen.choices[0].message.content in ("yes", "no")
    matched = client.chat.completions.create(**common, extra_body={"guided_regex": r"[a-f]{2}-\d{3}"})
    assert re.fullmatch(r"[a-f]{2}-\d{3}", matched.choices[0].message.content or "")
    thing = client.chat.completions.create(**common, response_format={"type": "json_object"}).choices[0]
    if thing.finish_reason == "stop":
        assert isinstance(json.loads(thing.message.content or ""), dict)


def _tools(client: openai.OpenAI) -> None:
    common: Any = {
        "model": "tiny",
        "messages": MESSAGES,
        "temperature": 1,
        "seed": 3,
        "max_tokens": 200,
        "tools": [WEATHER, TIME],
    }
    named: Any = {"type": "function", "function": {"name": "weather"}}
    choice = client.chat.completions.create(**common, tool_choice=named, parallel_tool_calls=False).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city", "days"}
    assert 1 <= arguments["days"] <= 9
    free = client.chat.completions.create(**{**common, "max_tokens": 5}, tool_choice="none").choices[0]
    assert free.message.tool_calls is None


def _streamed_tools(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES, "temperature": 1, "seed": 4, "max_tokens": 300, "tools": [WEATHER]}
    options: Any = {**common, "tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = client.chat.completions.create(**options).choices[0].message.tool_calls or ()
    identity, name, arguments, pieces, reason = "", "", "", 0, None
    for chunk in client.chat.completions.create(**options, stream=True):
        reason = chunk.choices[0].finish_reason or reason
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.index == 0
            assert part.function is not None
            identity += part.id or ""
            name += part.function.name or ""
            arguments += part.function.arguments or ""
            pieces += bool(part.function.arguments)
    assert whole.type == "function"
    assert (name, arguments, reason) == ("weather", whole.function.arguments, "tool_calls")
    assert identity.startswith("call_")
    assert pieces > 2


def _tool_results(client: openai.OpenAI) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 1}'}}
    messages: Any = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], max_tokens=4, temperature=0)
    assert reply.usage is not None
    shorter = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[WEATHER], max_tokens=4, temperature=0)
    assert shorter.usage is not None
    assert reply.usage.prompt_tokens > shorter.usage.prompt_tokens


def _refusals(client: openai.OpenAI) -> None:
    common: Any = {"model": "tiny", "messages": MESSAGES}
    impossible = {"type": "integer", "minimum": 5, "maximum": 2}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": impossible}}}, "response_format"),
        ({"extra_body": {"guided_regex": "["}}, "guided_regex"),
        ({"tools": [TIME], "tool_choice": "required", "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 4}, "min_tokens"),
    ]
    for fields, param in bad:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**common, **fields)
        assert caught.value.param == param, fields
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**common, stream=True, extra_body={"guided_regex": "["})
    assert caught.value.param == "guided_regex"
