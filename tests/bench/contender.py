"""One engine, measured in a process and an environment of its own: `python contender.py NAME MODEL < job.json`.

The job is {"NAME OF ROUND": [prompts]}, and how many tokens to generate. Prints one JSON line for each round: tokens per second,
milliseconds to the first token (mean), seconds. Imports nothing of the project but in `ours`, for most engines live without it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

Prompts = list[list[int]]
Runs = tuple[float, list[float]]
"""Seconds for all, and seconds to the first token of each."""
Run = Callable[[Prompts, int], Runs]
THREADS = len(os.sched_getaffinity(0))
DEVICE = os.environ.get("INFERMESH_BENCH_DEVICE", "cpu")
"""Of our engine and transformers."""
SLOTS = int(os.environ.get("INFERMESH_BENCH_SLOTS", "32"))


def ours(model: str) -> Run:
    """The engine in this process, without worker or socket."""
    from tests.bench.measured import MeasuredEngine

    return MeasuredEngine(model, device=DEVICE, slots=SLOTS).together


def ours_on_modules(model: str) -> Run:
    """The same without packed weights and our own forward pass."""
    from tests.bench.measured import MeasuredEngine

    return MeasuredEngine(model, fused=False, device=DEVICE, slots=SLOTS).together


def generate(model: str) -> Run:
    """transformers' `generate`, one prompt after another."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(DEVICE).eval()

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(prompts: Prompts, tokens: int) -> Runs:
        begun, first = time.perf_counter(), []
        for prompt in prompts:
            clock = Clock()
            loaded.generate(
                torch.tensor([prompt], device=DEVICE),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=DEVICE),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
            first.append(clock.times[1] - begun)  # the first thing put is the prompt
        return time.perf_counter() - begun, first

    return run


def continuous_batching(model: str) -> Run:
    """transformers' own continuous batching."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE).eval()
    # Left to itself it takes most of the memory and seconds to begin.
    sizes = ContinuousBatchingConfig(page_size=128, num_blocks=2 * SLOTS, max_batch_tokens=512, allow_block_sharing=False)
    manager = loaded.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0), continuous_batching_config=sizes
    )
    manager.start()

    def run(prompts: Prompts, tokens: int) -> Runs:
        begun, first, finished = time.perf_counter(), {}, 0
        for prompt in prompts:
            manager.add_request(prompt, streaming=True, max_new_tokens=tokens)
        while finished < len(prompts):
            result = manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("continuous batching gave nothing for a minute")
            first.setdefault(result.request_id, time.perf_counter() - begun)
            finished += result.is_finished()
        return time.perf_counter() - begun, list(first.values())

    return run


def llama_cpp(model: str) -> Run:
    """llama.cpp's own batches, all sequences in step: nothing is faster with it. `model` is a GGUF file."""
    import ctypes

    import llama_cpp as library
    import numpy as np

    library.llama_backend_init()
    silent = library.llama_log_callback(lambda level, text, data: None)
    library.llama_log_set(silent, ctypes.c_void_p(0))
    loaded = library.llama_model_load_from_file(model.encode(), library.llama_model_default_params())
    options = library.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 32 * 192, 2048, 512, 32
    options.n_threads = options.n_threads_batch = THREADS
    context = library.llama_init_from_model(loaded, options)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
    batch = library.llama_batch_init(2048, 0, 32)

    def step(items: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        batch.n_tokens = len(items)
        for row, (token, position, sequence, wanted) in enumerate(items):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, wanted
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        if library.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        rows = [(row, item[2]) for row, item in enumerate(items) if item[3]]
        return {
            sequence: int(np.ctypeslib.as_array(library.llama_get_logits_ith(context, row), shape=(vocabulary,)).argmax())
            for row, sequence in rows
        }

    def run(prompts: Prompts, tokens: int) -> Runs:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        begun, first, latest = time.perf_counter(), [], {}
        together = max(1, 512 // len(prompts[0]))
        for start in range(0, len(prompts), together):
            chosen = range(start, min(start + together, len(prompts)))
            latest |= step([(t, i, s, i == len(prompts[s]) - 1) for s in chosen for i, t in enumerate(prompts[s])])
            first += [time.perf_counter() - begun] * len(chosen)
        for number in range(tokens - 1):
            latest = step([(token, len(prompts[s]) + number, s, True) for s, token in latest.items()])
        return time.perf_counter() - begun, first

    return run


def vllm(model: str) -> Run:
    """vLLM's offline interface, which neither streams nor detokenizes here; so it has no time to the first token."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="2", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    loaded = LLM(
        model, dtype="bfloat16", max_model_len=1024, enforce_eager=True, enable_prefix_caching=False, max_num_seqs=32,
        max_num_batched_tokens=1024,
    )  # fmt: skip

    def run(prompts: Prompts, tokens: int) -> Runs:
        begun = time.perf_counter()
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        loaded.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - begun, []

    return run


CONTENDERS: dict[str, Callable[[str], Run]] = {
    "ours": ours,
    "ours on modules": ours_on_modules,
    "ours without graphs": ours,  # by its environment
    "generate": generate,
    "continuous batching": continuous_batching,
    "llama.cpp": llama_cpp,
    "vllm": vllm,
}


def main() -> None:
    name, model = sys.argv[1:]
    job = json.load(sys.stdin)
    run, tokens = CONTENDERS[name](model), job["tokens"]
    run(job["warm_up"], tokens)
    for prompts in job["rounds"]:
        seconds, first = run(prompts, tokens)
        figures = {
            "requests": len(prompts),
            "tokens_per_second": len(prompts) * tokens / seconds,
            "first_token_ms": 1e3 * statistics.mean(first) if first else None,
        }
        print("figures", json.dumps(figures), flush=True)
    sys.stdout.flush()
    os._exit(0)  # some leave threads behind that never end


if __name__ == "__main__":
    main()
