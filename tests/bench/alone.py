"""`python -m tests.bench.alone MODEL`: what our engine does by itself, as one line of JSON.

Known prefixes; the gaps of running answers beside a long prompt; what worker process and protocol cost; how often 16 bits
flip a token.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import trio

from mesh.messages.inference import Delta, InferenceRequest
from node.backends.torch import TorchBackend, TorchSettings
from tests.bench.engine_model import prompts
from tests.bench.measured import SLOTS, MeasuredEngine
from tests.figures import Figure, quantile

SHARED = 768
LONG = 2000
READERS = 4
PAIRS = 20
TOKENS = 64


def known_prefix(engine: MeasuredEngine) -> list[Figure]:
    """Time to the first token where most of the prompt is known, as a part of the time where nothing is."""
    ratios = []
    for (beginning,) in (prompts(1, length=SHARED, seed=seed) for seed in range(5)):
        (_, (cold,)), (_, (known,)) = (engine.together([[*beginning, end, end]], 1) for end in (400, 500))
        ratios.append(known / cold)
    return [Figure(f"first token behind {SHARED} known tokens / cold", statistics.median(ratios), "x", 0.08)]


def beside_a_long_prompt(engine: MeasuredEngine) -> list[Figure]:
    """The gaps between the tokens of answers under way, quiet and while a long prompt is computed."""
    quiet: list[float] = []
    beside: list[float] = []
    for seed in range(5):
        readers = [engine.submit(prompt, 200) for prompt in prompts(READERS, seed=100 + seed)]
        while len(engine.times[readers[0]]) < 60:
            engine.step()
        calm = time.perf_counter()
        (long,) = prompts(1, length=LONG, seed=seed)
        late = engine.submit(long, 1)
        while not engine.times[late]:
            engine.step()
        end = time.perf_counter()
        while not engine.engine.idle:
            engine.step()
        for number in readers:
            times = [each for each in engine.times[number] if each <= end]
            gaps = list(pairwise(times[10:]))
            quiet += [later - earlier for earlier, later in gaps if later < calm]
            beside += [later - earlier for earlier, later in gaps if later >= calm]
    middle, worst = statistics.median(quiet), quantile(beside, 0.99)
    return [
        Figure(f"{READERS} answers under way: gap between tokens, p50", 1e3 * middle, "ms"),
        Figure(f"{READERS} answers and a prompt of {LONG}: gap, p99", 1e3 * worst, "ms"),
        Figure(f"gap beside a prompt of {LONG}, p99 / quiet p50", worst / middle, "x", 3.0),
    ]


def flips(engine: MeasuredEngine) -> list[Figure]:
    """Of greedy tokens in 16 bits, those that another batch would have chosen otherwise; each answer counts up to its first."""
    asked = prompts(96, seed=7)
    together: list[list[int]] = []
    for start in range(0, len(asked), SLOTS):
        before = len(engine.ids)
        engine.together(asked[start : start + SLOTS], TOKENS)
        together += list(engine.ids.values())[before:]
    compared = flipped = 0
    for prompt, ids in zip(asked, together, strict=True):
        engine.together([prompt], TOKENS)
        single = next(reversed(engine.ids.values()))
        place = next((i for i, (a, b) in enumerate(zip(ids, single, strict=True)) if a != b), None)
        compared += TOKENS if place is None else place + 1
        flipped += place is not None
    return [Figure(f"bfloat16: greedy tokens that differ between alone and among {SLOTS}", 100 * flipped / compared, "%")]


def overhead(engine: MeasuredEngine, model: Path) -> list[Figure]:
    """CPU time for a step: a worker and this process talking to it, less the engine in this process. The two take turns."""
    pairs = trio.run(_pairs, engine, model)
    added = sorted(100 * (worker / own - 1) for own, worker in pairs)
    source = random.Random(0)
    middles = sorted(statistics.median(source.choices(added, k=len(added))) for _ in range(2000))
    return [
        Figure(f"{SLOTS} at once: CPU time for a step, in process", 1e6 * statistics.median(own for own, _ in pairs), "us"),
        Figure(f"{SLOTS} at once: worker and protocol add, median of {PAIRS} pairs", statistics.median(added), "%", 2.0),
        Figure(f"{SLOTS} at once: that median's 95 % interval, from", middles[50], "%"),
        Figure(f"{SLOTS} at once: that median's 95 % interval, to", middles[-51], "%"),
    ]


async def _pairs(engine: MeasuredEngine, model: Path) -> list[tuple[float, float]]:
    """Seconds of CPU for a step, here and by way of a worker."""
    backend = TorchBackend(TorchSettings(model="m", path=model, dtype="bfloat16", slots=SLOTS, cache_mib=1024))
    found = []
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        worker = psutil.Process(backend.status().pid)
        for number in range(PAIRS + 1):
            asked = prompts(SLOTS, seed=1000 + number)
            begun, steps = time.process_time(), engine.engine.load.step
            engine.together(asked, TOKENS)
            own = (time.process_time() - begun) / (engine.engine.load.step - steps)
            begun, steps, theirs = time.process_time(), backend.load.step, _cpu(worker)
            async with trio.open_nursery() as requests:
                for index, prompt in enumerate(asked):
                    requests.start_soon(_ask, backend, f"{number}-{index}", prompt)
            there = (time.process_time() - begun + _cpu(worker) - theirs) / (backend.load.step - steps)
            found.append((own, there))
        nursery.cancel_scope.cancel()
    return found[1:]  # the first one warms both up


async def _ask(backend: TorchBackend, name: str, prompt: list[int]) -> None:
    got: list[int] = []
    request = InferenceRequest(
        request_id=name, model="m", task="completion", prompt=prompt, max_tokens=TOKENS, temperature=0.0, ignore_eos=True
    )
    await backend.infer(request, lambda event: got.extend(event.token_ids) if isinstance(event, Delta) else None)
    assert len(got) == TOKENS


def _cpu(process: psutil.Process) -> float:
    """Seconds of CPU of all threads, to the nanosecond: what `cpu_times` rounds to hundredths."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def main() -> None:
    model = Path(sys.argv[1])
    engine = MeasuredEngine(str(model))
    engine.together(prompts(2, seed=-1), TOKENS)
    figures = [*known_prefix(engine), *beside_a_long_prompt(engine), *flips(engine), *overhead(engine, model)]
    print(json.dumps([dataclasses.asdict(figure) for figure in figures]))


if __name__ == "__main__":
    main()
