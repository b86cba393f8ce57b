"""Clients as people use them, unmodified: the official OpenAI package and a WebSocket client."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from openai import OpenAI
from websockets.trio.client import connect

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

DEMO = "infermesh-demo"


async def serves(http: Any, url: str, model: str) -> bool:
    answer = await http.get(f"{url}/v1/models")
    return any(entry["id"] == model for entry in answer.json()["data"])


async def test_official_openai_client(fleet: Any, http: Any, until: Any) -> None:
    from tokenizers import Tokenizer

    from node.models import demo_model_path

    gateway = await fleet.gateway("--no-mdns")
    await fleet.node("--no-mdns", "--bootstrap", gateway.address)
    await until(lambda: serves(http, gateway.url, DEMO))
    tokenizer = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    question = [{"role": "user", "content": "Who are you?"}]

    def plain() -> Any:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            return client.chat.completions.create(model=DEMO, messages=question, temperature=0)

    def streamed() -> tuple[str, Any]:
        text, usage = "", None
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            options = {"include_usage": True}
            chunks = client.chat.completions.create(
                model=DEMO, messages=question, temperature=0, stream=True, stream_options=options
            )
            for chunk in chunks:
                if chunk.choices:
                    text += chunk.choices[0].delta.content or ""
                usage = chunk.usage or usage
        return text, usage

    answer = await trio.to_thread.run_sync(plain)
    content = answer.choices[0].message.content
    assert "infermesh-demo" in content
    assert answer.choices[0].finish_reason == "stop"
    # The end-of-turn token is generated too, and counted.
    assert answer.usage.completion_tokens == len(tokenizer.encode(content, add_special_tokens=False).ids) + 1
    assert answer.usage.prompt_tokens > len(tokenizer.encode("Who are you?", add_special_tokens=False).ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    text, usage = await trio.to_thread.run_sync(streamed)
    assert text == content
    assert usage == answer.usage


class Socket:
    """A WebSocket client that keeps all it was told."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.seen: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        await self._socket.send(json.dumps(message))

    async def listen(self) -> None:
        async for text in self._socket:
            self.seen.append(json.loads(text))

    def of(self, kind: str, request_id: str | None = None) -> list[dict[str, Any]]:
        return [m for m in self.seen if m["type"] == kind and request_id in (None, m.get("request_id"))]


async def test_websocket_runs_three_cancels_one_pings_and_sees_a_node_join(fleet: Any, http: Any, until: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    await fleet.mock("model-a;tokens_per_second=20;length=40", "--no-mdns", "--bootstrap", gateway.address)
    await until(lambda: serves(http, gateway.url, "model-a"))
    async with connect(gateway.url.replace("http", "ws") + "/ws/someone") as raw, trio.open_nursery() as nursery:
        client = Socket(raw)
        nursery.start_soon(client.listen)
        await until(lambda: client.of("connection"))
        await client.say(type="subscribe", topics=["status"])
        await until(lambda: client.of("subscribed"))
        await until(lambda: client.of("event"))
        before = len(client.of("event"))
        for name in ("one", "two", "three"):
            parameters = {"max_new_tokens": 40}
            await client.say(
                type="inference", request_id=name, model="model-a", inputs="Hello there", parameters=parameters, stream=True
            )
        for name in ("one", "two", "three"):
            await until(lambda name=name: client.of("inference_chunk", name))
        await client.say(type="ping")
        await client.say(type="cancel", request_id="two")
        await until(lambda: client.of("pong"))
        await until(lambda: client.of("inference_cancelled", "two"))
        assert not client.of("inference_complete"), "the others still run while pings and cancels are answered"
        await fleet.mock("model-b", "--no-mdns", "--bootstrap", gateway.address)
        await until(lambda: len(client.of("event")) > before)
        joined = client.of("event")[before:]
        assert any(event["topic"] == "status" for event in joined)
        for name in ("one", "three"):
            await until(lambda name=name: client.of("inference_complete", name))
            chunks = client.of("inference_chunk", name)
            assert [chunk["index"] for chunk in chunks] == sorted({chunk["index"] for chunk in chunks})
            assert client.of("inference_complete", name)[0]["usage"]["completion_tokens"] == 40
        assert not client.of("inference_complete", "two")
        assert all("timestamp" in message for message in client.seen)
        nursery.cancel_scope.cancel()


async def test_sampled_text_is_the_same_on_two_nodes_alone_and_in_a_full_batch(fleet: Any, http: Any) -> None:
    urls = []
    for _ in range(2):
        node = await fleet.node("--no-mdns")
        urls.append((await http.get(f"{node.url}/info")).json()["url"])
    # At 0.8 the demo model leaves little to chance, even on a prompt that it never saw; at 2 the seed decides much more.
    wanted = [
        {"model": DEMO, "prompt": "qx vb", "temperature": temperature, "seed": 7, "max_tokens": 60} for temperature in (0.8, 2)
    ]

    async def ask(url: str, body: dict[str, Any], results: list[str]) -> None:
        answer = await http.post(f"{url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        results.append(answer.json()["choices"][0]["text"])

    texts: list[list[str]] = [[], []]
    for url in urls:
        for asked, said in zip(wanted, texts, strict=True):
            await ask(url, asked, said)
    others: list[str] = []
    async with trio.open_nursery() as nursery:
        for seed in range(14):
            nursery.start_soon(ask, urls[0], {**wanted[1], "seed": 100 + seed, "max_tokens": 80}, others)
        for asked, said in zip(wanted, texts, strict=True):
            nursery.start_soon(ask, urls[0], asked, said)
    assert [len(said) for said in texts] == [3, 3]
    assert [len(set(said)) for said in texts] == [1, 1]
    assert len(set(others)) > 5, "other seeds say other things"
