"""Clients of a soak: streams without end through one gateway, and what became of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2
import trio

if TYPE_CHECKING:
    from tests.soak.view import View


@dataclass
class Outcomes:
    """Of all requests of some clients. `longest_gap` in seconds, between two pieces of one stream."""

    counts: Counter[str] = field(default_factory=Counter)
    pieces: int = 0
    longest_gap: float = 0.0

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.counts.items() if outcome != "done")

    def __str__(self) -> str:
        return ", ".join(f"{outcome}: {count}" for outcome, count in sorted(self.counts.items()))


async def stream_for_ever(view: View, model: str, outcomes: Outcomes, *, tokens: int, temperature: float = 0.0) -> None:
    """One stream after another."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "temperature": temperature,
        "max_tokens": tokens,
        "stream": True,
    }
    while True:
        outcomes.counts[await one_stream(view, body, outcomes)] += 1
        await trio.sleep(0.01)


async def one_stream(view: View, body: dict[str, object], outcomes: Outcomes) -> str:
    """`done`, the code of an error, or `cut`."""
    last: float | None = None
    try:
        async with view.http.stream("POST", f"{view.program.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return str(json.loads(await answer.aread())["error"]["code"])
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return "done"
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return str(event["error"]["code"])
                    now = time.perf_counter()
                    outcomes.longest_gap = max(outcomes.longest_gap, now - (last or now))
                    last = now
                    outcomes.pieces += 1
    except httpx2.HTTPError as error:
        return type(error).__name__
    return "cut"
