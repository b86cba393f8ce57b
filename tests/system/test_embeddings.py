"""Embeddings with real processes and OpenAI's own client."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from openai import BadRequestError, OpenAI

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

DEMO = "infermesh-demo"


async def test_a_chat_model_embeds_too(fleet: Any, http: Any, until: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    await fleet.node("--no-mdns", "--bootstrap", gateway.address)

    async def serves() -> bool:
        answer = await http.get(f"{gateway.url}/v1/models")
        return any(entry["id"] == DEMO for entry in answer.json()["data"])

    await until(serves)
    texts = [f"A mesh of {count} nodes." for count in range(70)]

    def ask() -> tuple[Any, Any, Any]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            many = client.embeddings.create(model=DEMO, input=texts)
            plain = client.embeddings.create(model=DEMO, input=texts[3], encoding_format="float", dimensions=16)
            with pytest.raises(BadRequestError) as caught:
                client.embeddings.create(model=DEMO, input=["fine", "far too long " * 5000])
            return many, plain, caught.value

    many, plain, error = await trio.to_thread.run_sync(ask)
    assert [one.index for one in many.data] == list(range(70))
    assert all(math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5) for one in (*many.data, *plain.data))
    assert len({tuple(one.embedding) for one in many.data}) == 70
    whole = many.data[3].embedding[:16]
    length = math.hypot(*whole)
    assert plain.data[0].embedding == pytest.approx([value / length for value in whole], abs=1e-5)
    assert many.usage.total_tokens > plain.usage.total_tokens > 0
    assert (error.code, error.param) == ("context_length_exceeded", "input")
