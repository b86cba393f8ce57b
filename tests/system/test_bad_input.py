"""Whatever a client sends gets a clear answer, and everything else goes on."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

DEMO = "infermesh-demo"
USER = [{"role": "user", "content": "Hello"}]

CASES: list[tuple[str, Any, int, str | None]] = [
    ("empty body", b"", 400, None),
    ("malformed JSON", b'{"model": ', 400, None),
    ("not an object", b"[1, 2]", 400, None),
    ("no model", {"messages": USER}, 400, "model"),
    ("no messages", {"model": DEMO}, 400, "messages"),
    ("empty messages", {"model": DEMO, "messages": []}, 400, "messages"),
    ("unknown model", {"model": "gpt-17", "messages": USER}, 404, None),
    ("temperature", {"model": DEMO, "messages": USER, "temperature": 3}, 400, "temperature"),
    ("top_p", {"model": DEMO, "messages": USER, "top_p": -0.1}, 400, "top_p"),
    ("max_tokens", {"model": DEMO, "messages": USER, "max_tokens": 0}, 400, "max_tokens"),
    ("top_k", {"model": DEMO, "messages": USER, "top_k": -2}, 400, "top_k"),
    ("wrong type", {"model": DEMO, "messages": "Hello"}, 400, "messages"),
    ("too long", {"model": DEMO, "messages": [{"role": "user", "content": "word " * 20_000}]}, 400, None),
    ("too large", b'{"model": "' + b"x" * 20_000_000 + b'"}', 413, None),
]


async def test_bad_requests(fleet: Any, http: Any, until: Any, chat: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    await fleet.node("--no-mdns", "--bootstrap", gateway.address)

    async def serves() -> bool:
        return bool((await http.get(f"{gateway.url}/v1/models")).json()["data"])

    await until(serves)
    for name, body, status, param in CASES:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await http.post(f"{gateway.url}/v1/chat/completions", **content)
        assert answer.status_code == status, f"{name}: {answer.status_code} {answer.text[:300]}"
        error = answer.json()["error"]
        assert error["message"], name
        assert set(error) == {"message", "type", "param", "code"}, name
        if param:
            assert param in str(error["param"]), f"{name}: {error}"
    codes = {
        "unknown model": "model_not_found",
        "too long": "context_length_exceeded",
    }
    for name, body, _, _ in CASES:
        if name in codes:
            error = (await http.post(f"{gateway.url}/v1/chat/completions", json=body)).json()["error"]
            assert error["code"] == codes[name]
    assert (await http.get(f"{gateway.url}/nowhere")).status_code == 404
    assert (await http.get(f"{gateway.url}/v1/chat/completions")).status_code == 405
    assert (await http.post(f"{gateway.url}/v1/chat/completions", json=chat(DEMO))).status_code == 200
