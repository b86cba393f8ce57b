"""Switch policies for real: two mock models with a wake time of two seconds, the same arrivals for each policy.

The simulation's traces (`tests/simulation/switches.py`), a minute of each, sent to the node's own port.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import trio

from node.multiplexer.policies import POLICIES
from tests.figures import Figure, quantile
from tests.simulation.switches import arrivals

if TYPE_CHECKING:
    import httpx2

    from tests.fleet import Fleet
    from tests.simulation.switches import Arrival

TRACES = ("balanced", "bursty")
DURATION = 60.0
MODELS = "model-0,model-1"
KNOBS = "wake_seconds=2;tokens_per_second=20"
SUM = re.compile(r"^infermesh_switch_duration_seconds_sum (\S+)$", re.MULTILINE)
COUNT = re.compile(r"^infermesh_switch_duration_seconds_count (\S+)$", re.MULTILINE)


async def switches(fleet: Fleet, http: httpx2.AsyncClient) -> list[Figure]:
    """Time spent switching and waits, policy by policy; about seven minutes."""
    figures = []
    for trace in TRACES:
        requests = arrivals(trace, 2, 1, DURATION)
        spent: dict[str, float] = {}
        for policy in POLICIES:
            node = await fleet.mock(f"{MODELS};{KNOBS}", "--switch-policy", policy, "--no-mdns")
            url = str((await http.get(f"{node.url}/info")).json()["url"])
            waits = await replay(http, url, requests)
            page = (await http.get(f"{node.url}/metrics")).text
            await node.stop()
            spent[policy] = _value(SUM, page)
            figures += [
                Figure(f"{trace}, {policy}: switches", _value(COUNT, page), ""),
                Figure(f"{trace}, {policy}: spent switching", spent[policy], "s"),
                Figure(f"{trace}, {policy}: wait for the first token, p50", quantile(waits, 0.5), "s"),
                Figure(f"{trace}, {policy}: wait for the first token, p95", quantile(waits, 0.95), "s"),
            ]
        least = min(spent["cost_aware"], spent["time_slice"])
        figures.append(Figure(f"{trace}: the better of cost_aware and time_slice / fifo", least / spent["fifo"], "x", 1.0))
    return figures


async def replay(http: httpx2.AsyncClient, url: str, requests: list[Arrival]) -> list[float]:
    """Send each when it is due; seconds to the first token of each."""
    waits: list[float] = []
    zero = trio.current_time()

    async def one(arrival: Arrival) -> None:
        await trio.sleep_until(zero + arrival.at)
        began = trio.current_time()
        body = {
            "model": arrival.model,
            "prompt": "p",
            "max_tokens": max(1, round(20 * arrival.work)),
            "ignore_eos": True,
            "stream": True,
        }
        async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            first = True
            async for _ in answer.aiter_lines():
                if first:
                    waits.append(trio.current_time() - began)
                first = False

    async with trio.open_nursery() as nursery:
        for arrival in requests:
            nursery.start_soon(one, arrival)
    return waits


def _value(pattern: re.Pattern[str], page: str) -> float:
    found = pattern.search(page)
    assert found is not None, page
    return float(found[1])
