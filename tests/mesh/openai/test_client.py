"""OpenAI's own Python client, unmodified."""

from __future__ import annotations

import openai
import pytest
import trio

from mesh.errors import Busy, NotFound, Unavailable
from mesh.messages.inference import Delta

# The client leaves its own generators to the garbage collector once it has read what it wanted.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning")

MESSAGES = [{"role": "user", "content": "hi"}]


async def test_from_a_thread(running):
    def use(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            reply = client.chat.completions.create(model="m", messages=MESSAGES)
            assert reply.choices[0].message.content == "Hello"
            assert reply.usage is not None
            assert reply.usage.total_tokens == 10
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            texts = [chunk.choices[0].delta.content or "" for chunk in stream]
            assert "".join(texts) == "Hello"
            assert client.completions.create(model="m", prompt="once").choices[0].text == "Hello"
            assert [model.id for model in client.models.list()] == ["model-a", "org/model-b"]
            assert client.models.retrieve("model-a").id == "model-a"

    async with running() as url:
        await trio.to_thread.run_sync(use, url)


async def test_on_trio(running):
    async with running() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        reply = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert reply.choices[0].message.content == "Hello"
        stream = await client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3


async def test_errors_arrive_as_their_classes(running, service):
    async with running() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="between 0 and 2"):
            await client.chat.completions.create(model="m", messages=MESSAGES, temperature=3)
        service.script = [NotFound("no such model", code="model_not_found")]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        service.script = [Busy("full", retry_after=1)]
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="m", messages=MESSAGES)
        service.script = [Delta(0, [1], "Hel"), Unavailable("the node is gone")]
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the node is gone"):
            [chunk async for chunk in stream]


async def test_leaving_a_stream_cancels_the_inference(running, service):
    service.script = [Delta(0, [1], "Hel"), trio.Event()]
    async with running() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        async with await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
            async for _ in stream:
                break
        await service.cancelled.wait()
