"""Measure the policies on the simulated mesh: `python -m tests.simulation [routing|switches] [--write]`. One core, minutes.

`routing`: every figure is a ratio of two runs with the same traffic; three seeds each, percentiles over all of them.
`switches`: the switch policies of models that share an accelerator.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from tests.figures import Figure, report, write
from tests.simulation import switches
from tests.simulation.town import ORACLE, Outcome, Town, simulate

LOADS = (0.4, 0.6, 0.75)
SEEDS = (1, 2, 3)
TOWN = Town(load=0.5)
SHARED = replace(TOWN, beginnings=12, spread=4.0, prompt_tokens=60.0)


def run(town: Town) -> Outcome:
    """All seeds together. Raises RuntimeError when a request failed."""
    whole = Outcome()
    for seed in SEEDS:
        part = simulate(replace(town, seed=seed))
        whole.latencies += part.latencies
        whole.first_tokens += part.first_tokens
        whole.failed += part.failed
        whole.hits += part.hits
    if whole.failed:
        raise RuntimeError(f"{whole.failed} requests failed in {town}")
    return whole


def latency_figures(load: float) -> list[Figure]:
    """The default policy at one load, against the others, an oracle, and four gateways."""
    town = replace(TOWN, load=load)
    own = run(town).latency(0.95)
    others = {policy: run(replace(town, policy=policy)).latency(0.95) for policy in ("round_robin", "least_loaded", ORACLE)}
    four = run(replace(town, gateways=4)).latency(0.95)
    at = f"simulated: p95 latency at {load:.0%} load: "
    return [
        Figure(at + "round_robin / predicted_latency", others["round_robin"] / own, "x", floor=5),
        Figure(at + "least_loaded / predicted_latency", others["least_loaded"] / own, "x", floor=1.5),
        Figure(at + "predicted_latency / an oracle", own / others[ORACLE], "x", target=1.1),
        Figure(at + "four gateways / one", four / own, "x", target=1.08),
    ]


def prefix_figures() -> list[Figure]:
    """Twelve system prompts of 2,000 tokens over twelve nodes that keep four each."""
    kept, spread = run(replace(SHARED, policy="prefix_affinity")), run(SHARED)
    requests = len(SEEDS) * SHARED.requests
    return [
        Figure(
            "simulated: shared system prompts: share of requests that found theirs, prefix_affinity",
            kept.hits / requests,
            "",
            floor=0.85,
        ),
        Figure("simulated: shared system prompts: the same, predicted_latency", spread.hits / requests, ""),
        Figure(
            "simulated: shared system prompts: p50 TTFT, prefix_affinity / predicted_latency",
            kept.first_token(0.5) / spread.first_token(0.5),
            "x",
            target=0.4,
        ),
        Figure(
            "simulated: shared system prompts: p95 latency, prefix_affinity / predicted_latency",
            kept.latency(0.95) / spread.latency(0.95),
            "x",
        ),
    ]


def crowd_figures() -> list[Figure]:
    """10,000 nodes, eight gateways that each link 64 of them."""
    town = replace(TOWN, nodes=10_000, gateways=8, load=0.5 * 512 / 10_000, requests=20_000)
    own, turns = (simulate(replace(town, policy=policy)) for policy in ("predicted_latency", "round_robin"))
    return [
        Figure(
            "simulated: 10,000 nodes, 8 gateways of 64 links: p95, round_robin / predicted_latency",
            turns.latency(0.95) / own.latency(0.95),
            "x",
            floor=5,
        )
    ]


def routing() -> list[Figure]:
    """Everything about who is sent where, each figure told as soon as it is there."""
    found: list[Figure] = []
    for measure in (*(lambda load=load: latency_figures(load) for load in LOADS), prefix_figures, crowd_figures):
        found += measure()
        print(f"{len(found)} figures", flush=True)
    return found


def main() -> int:
    """Print the table; the exit code says whether every target was met."""
    options = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    options.add_argument("part", nargs="?", choices=("routing", "switches"), default="routing")
    options.add_argument("--write", action="store_true", help="into docs/benchmarks.md and a JSON file beside it")
    chosen = options.parse_args()
    if chosen.part == "switches":
        return switches.main(publish=chosen.write)
    found = routing()
    if chosen.write:
        write(found, mark="simulation routing", file="simulation-routing.json")
    return report(found)


if __name__ == "__main__":
    sys.exit(main())
