"""A node by itself: its two ports, its worker, its end."""

from __future__ import annotations

import signal
from contextlib import aclosing
from typing import Any

import httpx2
import pytest
import trio

from node.models import demo_model_path

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def info_of(http: Any, node: Any) -> dict[str, Any]:
    return (await http.get(f"{node.url}/info")).json()


async def test_both_ports_answer_and_the_pair_is_free(fleet: Any, http: Any, chat: Any) -> None:
    node = await fleet.mock("model-a,model-b", "--no-mdns", "--name", "mine")
    info = await info_of(http, node)
    assert node.url == f"http://127.0.0.1:{info['port'] + 1}"
    assert (info["name"], info["service_type"], info["state"]) == ("mine", "mock", "ready")
    answers = [await http.post(f"{info['url']}/v1/chat/completions", json=chat("model-b")) for _ in range(2)]
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 2, "the seed is chosen per request"
    same = [await http.post(f"{info['url']}/v1/chat/completions", json=chat("model-b", seed=7)) for _ in range(2)]
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in same}) == 1


async def test_sigterm_finishes_what_is_in_flight(fleet: Any, http: Any, chat: Any) -> None:
    node = await fleet.mock("model-a;first_token_ms=1500", "--no-mdns")
    info = await info_of(http, node)
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await http.post(f"{info['url']}/v1/chat/completions", json=chat("model-a")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        node.process.send_signal(signal.SIGTERM)
    assert answers[0].status_code == 200
    assert await node.wait() == 0


async def test_a_request_that_never_ends_does_not_hold_up_the_end(fleet: Any, http: Any, chat: Any) -> None:
    node = await fleet.mock("model-a;hang_after_tokens=1", "--no-mdns", "--drain-timeout", "0.5")
    info = await info_of(http, node)
    url = f"{info['url']}/v1/chat/completions"
    async with http.stream("POST", url, json=chat("model-a", stream=True)) as answer, aclosing(answer.aiter_bytes()) as body:
        await anext(body)
        node.process.send_signal(signal.SIGTERM)
        await node.wait(20)
        with pytest.raises(httpx2.HTTPError):
            await anext(body)
    assert node.process.returncode == 0
    assert "1 requests did not end" in node.log.read_text()


async def test_the_killed_worker_is_replaced(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    node = await fleet.node("--no-mdns")
    info = await info_of(http, node)
    worker = node.worker()
    assert info["pid"] == worker.pid
    worker.kill()

    async def status() -> int:
        return (await http.get(f"{node.url}/health")).status_code

    async def is_down() -> bool:
        return await status() == 503

    async def is_up() -> bool:
        return await status() == 200

    await until(is_down)
    await until(is_up, limit=60)
    health = (await http.get(f"{node.url}/health")).json()
    assert health["restart_count"] == 1
    assert "SIGKILL" in health["last_error"]
    assert node.worker().pid != worker.pid
    answer = await http.post(f"{info['url']}/v1/chat/completions", json=chat("infermesh-demo", max_tokens=4))
    assert answer.status_code == 200


async def test_one_bad_model_beside_a_good_one(fleet: Any, http: Any, tmp_path: Any) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no-such-model"}')
    (broken / "tokenizer.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    node = await fleet.node("--no-mdns", "--model", f"bad={broken}", "--model", f"good={demo_model_path()}")
    health = await http.get(f"{node.url}/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    states = {model["id"]: model["state"] for model in (await info_of(http, node))["models"]}
    assert states == {"bad": "failed", "good": "ready"}
    alone = fleet.spawn("node", "--no-mdns", "--port", "0", "--model", f"bad={broken}")
    assert await alone.wait(60) == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--service-type", "command"], "needs a command"),
        (["--service-type", "mock"], "--args"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--port", "65535"], "65534"),
    ],
)
async def test_a_start_that_cannot_succeed_says_why(fleet: Any, args: list[str], says: str) -> None:
    program = fleet.spawn("node", "--no-mdns", *args)
    assert await program.wait(30) == 2
    assert says in program.log.read_text().strip().splitlines()[-1]


async def test_a_taken_port_is_named(fleet: Any, http: Any) -> None:
    node = await fleet.mock("a", "--no-mdns")
    port = (await info_of(http, node))["port"]
    other = fleet.spawn("node", "--no-mdns", "--service-type", "mock", "--args", "a", "--port", str(port))
    assert await other.wait(30) == 2
    assert str(port) in other.log.read_text().strip().splitlines()[-1]
