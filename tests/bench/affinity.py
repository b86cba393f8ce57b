"""What `prefix_affinity` saves on the real engine: requests that share long system prompts, over nodes that keep some of them.

The model has 88 M random parameters in the shape of Qwen3. Every node has room for the prefixes of a part of the system prompts
only, so whoever does not know where they are finds most of them gone. What a hit is, the engines say by their counters. A few
requests are under way at once; each is a stream, and its first token has come with its first event.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import trio
from rich.progress import track
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.figures import Figure
from tests.fleet import until
from tests.tiny import TEXT, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import httpx2

    from tests.fleet import Fleet, Program

SHARED_TOKENS = 640
PROMPT_TOKENS = SHARED_TOKENS + 64
"""What one system prompt takes in a cache: with what is around it, and some of the questions that were asked behind it."""
CONTEXT = 1024
SLOTS = 6
TOKENS = 4
AT_ONCE = 2
HIT_RATE = 0.85
CUT = 0.6
"""Of the time to the first token, against each of `BLIND`."""
BLIND = ("round_robin", "least_loaded")
"""Policies that know nothing of prefixes."""
POLICIES = ("prefix_affinity", *BLIND, "predicted_latency")
KV_HEADS, HEAD_SIZE, FLOAT = 4, 64, 4
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`keeps`: system prompts that one node has room for. 14 layers are 88 M parameters."""

    nodes: int = 4
    prompts: int = 20
    keeps: int = 8
    requests: int = 120
    layers: int = 14

    @property
    def cache_mib(self) -> int:
        """For what runs, and for the prefixes."""
        tokens = SLOTS * CONTEXT + self.keeps * PROMPT_TOKENS
        return tokens * self.layers * 2 * KV_HEADS * HEAD_SIZE * FLOAT >> 20


FULL = Plan()
SHORT = Plan(nodes=3, prompts=9, keeps=4, requests=24, layers=3)


@dataclass(frozen=True)
class Taken:
    """`first`: median seconds to the first token; `hits`: the share of requests that found a beginning computed."""

    first: float
    hits: float


async def affinity(fleet: Fleet, http: httpx2.AsyncClient, plan: Plan = FULL) -> list[Figure]:
    """The same requests under each policy, each time with prompts that no node has seen."""
    folder = fleet.logs / "model"
    tokenizer = make_model(folder, plan.layers)
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    way_in = ("--no-mdns", "--bootstrap", bootstrap.address)
    room = ("--context", str(CONTEXT), "--slots", str(SLOTS), "--cache-mib", str(plan.cache_mib))
    nodes = [await fleet.node(*way_in, "--model", f"big={folder}", "--dtype", "float32", *room) for _ in range(plan.nodes)]
    found = {}
    for policy in POLICIES:
        gateway = await fleet.gateway(*way_in, "--strategy", policy)
        await whole(http, gateway, plan.nodes)
        prompts = [prompt_of(tokenizer, f"{policy} {number}") for number in range(plan.prompts)]
        found[policy] = await measure(http, gateway, nodes, policy, prompts, plan.requests)
        await gateway.stop()
    capacity = max([(await cache_of(http, node))["total_capacity"] for node in nodes])
    for program in (*nodes, bootstrap):
        await program.stop()
    return figures(found, capacity / (plan.prompts * PROMPT_TOKENS), plan)


def figures(found: dict[str, Taken], kept: float, plan: Plan) -> list[Figure]:
    """`kept`: the share of all system prompts that the cache of one node holds."""
    own = found["prefix_affinity"]
    what = f"{plan.prompts} system prompts of {SHARED_TOKENS} tokens, {plan.nodes} nodes, {AT_ONCE} requests at once"
    rows = [Figure(f"{what}: share of the prompts that one node can keep", kept, "", 0.5)]
    for name, taken in found.items():
        rows.append(Figure(f"the same: hit rate, {name}", taken.hits, "", floor=HIT_RATE if taken is own else None))
    rows += [Figure(f"the same: time to the first token, {name}, p50", taken.first, "s") for name, taken in found.items()]
    for name in POLICIES[1:]:
        cut = 1 - own.first / found[name].first
        rows.append(
            Figure(f"the same: cut of it by prefix_affinity, against {name}", cut, "", floor=CUT if name in BLIND else None)
        )
    return rows


def make_model(folder: Path, layers: int) -> Any:
    """Write the model. Its tokenizer."""
    tokenizer = make_tokenizer(TEMPLATE)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=448,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def prompt_of(tokenizer: Any, seed: str) -> str:
    """A system prompt of `SHARED_TOKENS` tokens, which begins as no other one does."""
    words, source, text = TEXT.split(), random.Random(seed), ""
    while len(tokenizer(text)["input_ids"]) < SHARED_TOKENS:
        text += source.choice(words) + " "
    return text


async def whole(http: httpx2.AsyncClient, gateway: Program, nodes: int) -> None:
    """Wait until the gateway may ask every node."""

    async def complete() -> bool:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return bool(sum(one["state"] == "ready" for peer in peers if peer["linked"] for one in peer["models"]) == nodes)

    await until(complete)


async def measure(
    http: httpx2.AsyncClient, gateway: Program, nodes: Sequence[Program], policy: str, prompts: list[str], requests: int
) -> Taken:
    """First each prompt once: what nobody can have is no question of routing. Then `requests` with prompts at random."""
    source = random.Random(1)
    before = await looked_up(http, nodes, 0)
    await ask_all(http, gateway, [(prompt, 0) for prompt in prompts])
    warm = await looked_up(http, nodes, sum(before) + len(prompts))
    asked = [(source.choice(prompts), number) for number in range(1, requests + 1)]
    taken = await ask_all(http, gateway, track(asked, f"shared prompts by {policy}"))
    hits, _ = await looked_up(http, nodes, sum(warm) + requests)
    return Taken(statistics.median(taken), (hits - warm[0]) / requests)


async def ask_all(http: httpx2.AsyncClient, gateway: Program, asked: Iterable[tuple[str, int]]) -> list[float]:
    """`AT_ONCE` clients, each with one request after the other. Seconds to each first token."""
    waiting = iter(asked)
    taken: list[float] = []

    async def client() -> None:
        for prompt, number in waiting:
            taken.append(await first_token(http, gateway, prompt, number))

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(client)
    return taken


async def first_token(http: httpx2.AsyncClient, gateway: Program, prompt: str, number: int) -> float:
    """Ask, and read to the end."""
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": f"Question {number}?"}]
    body = {"model": "big", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    start, first = time.perf_counter(), 0.0
    async with http.stream("POST", f"{gateway.url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: ") and not first:
                first = time.perf_counter() - start
    return first


async def looked_up(http: httpx2.AsyncClient, nodes: Sequence[Program], least: int) -> tuple[int, int]:
    """Hits and misses of all nodes, once they have told of `least` requests."""
    found = (0, 0)

    async def told() -> bool:
        nonlocal found
        caches = [await cache_of(http, node) for node in nodes]
        found = sum(cache["hits"] for cache in caches), sum(cache["misses"] for cache in caches)
        return sum(found) >= least

    await until(told)
    return found


async def cache_of(http: httpx2.AsyncClient, node: Program) -> dict[str, int]:
    (model,) = (await http.get(f"{node.url}/info")).json()["models"]
    # None: its engine has said nothing yet.
    cache: dict[str, int] = (model["metrics"] or {}).get("cache") or {"hits": 0, "misses": 0, "total_capacity": 0}
    return cache
