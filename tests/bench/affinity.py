"""What `prefix_affinity` saves on the real engine: requests that share long system prompts, over nodes that keep some of them.

The model has 88 M random parameters in the shape of Qwen3. Requests come one after another, so what is measured is prefill, not
waiting. A node's cache has room for `KEPT` tokens of prefixes, a third of what all system prompts need. A request counts as a hit
when its prefill took less than half of what it takes for a prompt that is new.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.figures import Figure
from tests.fleet import until
from tests.tiny import TEXT, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

    from tests.fleet import Fleet, Program

NODES = 4
SYSTEM_PROMPTS = 16
SHARED_TOKENS = 640
KEPT = 4096
REQUESTS = 60
POLICIES = ("prefix_affinity", "predicted_latency", "round_robin")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


async def affinity(fleet: Fleet, http: httpx2.AsyncClient) -> list[Figure]:
    """The same requests under each policy, each time with prompts that no node has seen."""
    folder = fleet.logs / "bench-88m"
    tokenizer = make_model(folder)
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    way_in = ("--no-mdns", "--bootstrap", bootstrap.address)
    room = ("--context", "1024", "--slots", str(KEPT // 1024))
    nodes = [await fleet.node(*way_in, "--model", f"big={folder}", "--dtype", "float32", *room) for _ in range(NODES)]
    found = {}
    for policy in POLICIES:
        gateway = await fleet.gateway(*way_in, "--strategy", policy)
        prompts = [prompt_of(tokenizer, f"{policy} {number}") for number in range(SYSTEM_PROMPTS)]
        found[policy] = await measure(http, gateway, policy, prompts)
        await gateway.stop()
    for program in (*nodes, bootstrap):
        await program.stop()
    return figures(found)


def figures(found: dict[str, tuple[float, float]]) -> list[Figure]:
    """Of what `measure` told of each policy."""
    own = found["prefix_affinity"]
    rows = [Figure(f"{SHARED_TOKENS} shared tokens, 88 M model: hit rate, {name}", hits, "") for name, (_, hits) in found.items()]
    rows += [Figure(f"the same: TTFT, {name}, p50", seconds, "s") for name, (seconds, _) in found.items()]
    rows.append(Figure("the same: share of requests that missed, prefix_affinity", 1 - own[1], "", 0.15))
    for name in POLICIES[1:]:
        rows.append(Figure(f"the same: TTFT p50, prefix_affinity / {name}", own[0] / found[name][0], "x", 0.4))
    return rows


def make_model(folder: Path) -> Any:
    """Write the model. Its tokenizer."""
    tokenizer = make_tokenizer(TEMPLATE)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=448,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def prompt_of(tokenizer: Any, beginning: str) -> str:
    """A system prompt of `SHARED_TOKENS` tokens."""
    words, source, text = TEXT.split(), random.Random(beginning), beginning
    while len(tokenizer(text)["input_ids"]) < SHARED_TOKENS:
        text += " " + source.choice(words)
    return text


async def measure(http: httpx2.AsyncClient, gateway: Program, policy: str, prompts: list[str]) -> tuple[float, float]:
    """Median seconds to the first token, and the share of requests that found their system prompt computed."""

    async def complete() -> bool:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return bool(sum(one["state"] == "ready" for peer in peers if peer["linked"] for one in peer["models"]) == NODES)

    await until(complete)
    source = random.Random(1)
    # Each prompt once: what nobody can have is no question of routing.
    cold = statistics.median([(await ask(http, gateway, prompt, 0)).prefill for prompt in prompts])
    asked = [(source.choice(prompts), number) for number in range(1, REQUESTS + 1)]
    taken = [await ask(http, gateway, *one) for one in track(asked, f"shared prompts by {policy}")]
    return statistics.median([one.seconds for one in taken]), sum(one.prefill < cold / 2 for one in taken) / REQUESTS


@dataclass(frozen=True)
class Taken:
    """`seconds` until the client had the first token; `prefill`: what the engine says of its part, also in seconds."""

    seconds: float
    prefill: float


async def ask(http: httpx2.AsyncClient, gateway: Program, prompt: str, number: int) -> Taken:
    """An answer of one token."""
    messages = [{"role": "system", "content": prompt}, {"role": "user", "content": f"Question {number}?"}]
    body = {"model": "big", "messages": messages, "max_tokens": 1, "ignore_eos": True, "temperature": 0}
    start = time.perf_counter()
    answer = await http.post(f"{gateway.url}/v1/chat/completions", json=body)
    seconds = time.perf_counter() - start
    answer.raise_for_status()
    return Taken(seconds, answer.json()["performance"]["prefill_time_ms"] / 1000)
