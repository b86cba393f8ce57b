"""The engine against transformers' own `generate`, and requests that must not disturb each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mesh.messages.inference import Accepted, Done, Fail
from tests.node.worker.greedy import COUNT, MARGIN, flips

EXACT_KINDS = ("llama", "qwen3", "mistral", "mistral-window")


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_greedy_equals_generate_alone(
    kind: str, make_driver: Any, reference: Any, prompts: list[list[int]], record_property: Any
) -> None:
    driver = make_driver(kind, slots=2)
    flipped = sum(flips(reference(kind, prompt, COUNT), driver.answer(prompt=prompt, max_tokens=COUNT).ids) for prompt in prompts)
    record_property("flips_inside_margin", flipped)
    print(f"{kind} alone: {flipped} flips inside the margin of {MARGIN}")
    assert flipped <= 1


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_greedy_equals_generate_in_a_batch_of_16_with_staggered_arrivals(
    kind: str, make_driver: Any, reference: Any, prompts: list[list[int]], record_property: Any
) -> None:
    driver = make_driver(kind)
    for index, prompt in enumerate(prompts):
        driver.submit(prompt=prompt, max_tokens=COUNT)
        if index % 2:
            driver.step()
    driver.run()
    assert max(driver.batches) > 10
    flipped = sum(flips(reference(kind, prompt, COUNT), driver.outcomes[i].ids) for i, prompt in enumerate(prompts))
    record_property("flips_inside_margin", flipped)
    print(f"{kind} in a batch: {flipped} flips inside the margin of {MARGIN}")
    assert flipped <= 1


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_prompts_cut_into_pieces_give_the_same(kind: str, make_driver: Any, reference: Any, prompts: list[list[int]]) -> None:
    driver = make_driver(kind, slots=4, budget=16)
    for prompt in prompts:
        driver.submit(prompt=prompt, max_tokens=COUNT)
    driver.run()
    assert sum(flips(reference(kind, prompt, COUNT), driver.outcomes[i].ids) for i, prompt in enumerate(prompts)) <= 1


def test_a_model_with_its_own_attention_runs_on_generate_one_at_a_time(
    make_driver: Any, reference: Any, prompts: list[list[int]]
) -> None:
    driver = make_driver("stablelm")
    assert driver.engine.load.slots == 1
    for prompt in prompts[3:8]:
        driver.submit(prompt=prompt, max_tokens=10)
    driver.run()
    assert max(driver.batches) == 1
    for index, prompt in enumerate(prompts[3:8]):
        assert flips(reference("stablelm", prompt, 10), driver.outcomes[index].ids) == 0


SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 1234, "max_tokens": 30}


def test_seeded_sampling_is_the_same_alone_in_a_batch_and_in_another_engine(make_driver: Any, prompts: list[list[int]]) -> None:
    alone = make_driver(slots=1).answer(prompt=prompts[6], **SAMPLED)
    driver = make_driver()
    for index, prompt in enumerate(prompts):
        driver.submit(prompt=prompt, temperature=1.0, seed=index, max_tokens=30)
    driver.step()
    number = driver.submit(prompt=prompts[6], **SAMPLED)
    driver.run()
    assert driver.outcomes[number].ids == alone.ids
    assert driver.outcomes[number].text == alone.text
    assert make_driver(slots=1).answer(prompt=prompts[6], **{**SAMPLED, "seed": 1235}).ids != alone.ids


def test_text_equals_decoding_and_usage_counts_tokens(make_driver: Any, tokenizer: Any) -> None:
    driver = make_driver()
    messages = [{"role": "user", "content": "Grüße 🙂"}]
    for seed in range(16):
        driver.submit(messages=messages, temperature=1.0, seed=seed, max_tokens=60)
    driver.run()
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for outcome in driver.outcomes.values():
        assert outcome.text == tokenizer.decode(outcome.ids, skip_special_tokens=True)
        assert isinstance(outcome.last, Done)
        assert outcome.last.usage.prompt_tokens == len(prompt)
        assert outcome.last.usage.completion_tokens == len(outcome.ids)
        assert outcome.last.finish_reason == ("stop" if outcome.ids[-1] == tokenizer.eos_token_id else "length")
        performance = outcome.last.performance
        assert performance.prefill_time_ms > 0
        assert performance.tokens_per_second > 0
        assert performance.queue_time_ms >= 0
        assert performance.batch_size == 16


def test_end_token_stops(make_driver: Any, tokenizer: Any) -> None:
    driver = make_driver()
    for seed in range(64):
        driver.submit(prompt="A", temperature=2.0, seed=seed, max_tokens=100)
    driver.run()
    stopped = [outcome for outcome in driver.outcomes.values() if outcome.last.finish_reason == "stop"]
    assert stopped
    for outcome in stopped:
        assert outcome.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token not in outcome.text


def test_max_tokens_is_what_the_context_leaves(make_driver: Any, prompts: list[list[int]]) -> None:
    driver = make_driver(context=60, slots=4)
    free, capped = (driver.submit(prompt=prompts[7], max_tokens=limit) for limit in (None, 1000))
    driver.run()
    for number in (free, capped):
        outcome = driver.outcomes[number]
        assert len(outcome.ids) == 60 - 34 or outcome.last.finish_reason == "stop"
    assert driver.outcomes[free].ids == driver.outcomes[capped].ids


def test_max_length_counts_the_prompt(make_driver: Any, prompts: list[list[int]]) -> None:
    outcome = make_driver().answer(prompt=prompts[7], max_length=len(prompts[7]) + 3, max_tokens=10)
    assert (len(outcome.ids), outcome.last.finish_reason) == (3, "length")


def test_stop_string_ends_the_text_before_it(make_driver: Any) -> None:
    driver = make_driver()
    whole = driver.answer(prompt="The engine", temperature=1.0, seed=5, max_tokens=60).text
    stop = whole[20:23]
    cut = driver.answer(prompt="The engine", temperature=1.0, seed=5, max_tokens=60, stop=["never there", stop])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.last.finish_reason == "stop"


BAD = [
    ({"prompt": ""}, "invalid_request", "prompt"),
    ({"prompt": []}, "invalid_request", "prompt"),
    ({"prompt": [5, 512]}, "invalid_request", "prompt"),
    ({"prompt": [-1]}, "invalid_request", "prompt"),
    ({"prompt": [5] * 512}, "context_length_exceeded", "prompt"),
    ({"prompt": [5] * 8, "max_length": 8}, "invalid_request", "max_length"),
    ({"prompt": "x", "max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"prompt": "x", "temperature": -0.1}, "invalid_request", "temperature"),
    ({"prompt": "x", "temperature": float("nan")}, "invalid_request", "temperature"),
    ({"prompt": "x", "top_p": 0.0}, "invalid_request", "top_p"),
    ({"prompt": "x", "top_k": -1}, "invalid_request", "top_k"),
    ({"prompt": "x", "stop": [""]}, "invalid_request", "stop"),
    ({"prompt": "x", "stop": ["a"] * 17}, "invalid_request", "stop"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_messages", "messages"),
    ({"task": "embedding", "inputs": ["x"]}, "unsupported_task", "task"),
]


def test_bad_requests_fail_alone(make_driver: Any, prompts: list[list[int]], reference: Any) -> None:
    driver = make_driver()
    good = [driver.submit(prompt=prompt, max_tokens=COUNT) for prompt in prompts[:4]]
    driver.step()
    bad = [(driver.submit(**fields), code, param) for fields, code, param in BAD]
    driver.run()
    for number, code, param in bad:
        (fail,) = driver.outcomes[number].events
        assert isinstance(fail, Fail)
        assert (fail.kind, fail.code, fail.param, fail.status) == ("BadRequest", code, param, 400)
    assert sum(flips(reference("llama", prompts[i], COUNT), driver.outcomes[i].ids) for i in good) == 0


def test_too_long_a_prompt_is_told_both_numbers(make_driver: Any) -> None:
    fail = make_driver(slots=1, context=64).answer(prompt=[5] * 64).last
    assert isinstance(fail, Fail)
    assert "64 tokens" in fail.message
    assert fail.message.count("64") == 2


def test_abort_ends_a_request_within_two_steps(make_driver: Any, prompts: list[list[int]], reference: Any) -> None:
    driver = make_driver(slots=3)
    running = [driver.submit(prompt=prompt, max_tokens=COUNT) for prompt in prompts[:5]]
    driver.step()
    driver.engine.abort(running[0])
    driver.engine.abort(running[4])  # still waiting
    driver.engine.abort(99)
    driver.step()
    for number in (running[0], running[4]):
        fail = driver.outcomes[number].last
        assert isinstance(fail, Fail)
        assert fail.code == "cancelled"
    driver.run()
    for number in running[1:4]:
        assert flips(reference("llama", prompts[number], COUNT), driver.outcomes[number].ids) == 0


def test_a_full_queue_is_busy(make_driver: Any) -> None:
    driver = make_driver(slots=1, queue=2)
    numbers = [driver.submit(prompt="x", max_tokens=2) for _ in range(3)]
    driver.run()
    fail = driver.outcomes[numbers[2]].last
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.status) == ("Busy", 429)
    assert fail.retry_after
    assert all(isinstance(driver.outcomes[number].last, Done) for number in numbers[:2])
    assert driver.outcomes[numbers[1]].events[0] == Accepted(running=0, waiting=2)


def test_a_passed_deadline_ends_a_request(make_driver: Any) -> None:
    driver = make_driver(slots=1)
    fail = driver.answer(prompt="x", deadline_ms=0).last
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.code) == ("TimedOut", "deadline_exceeded")


def test_a_number_in_use_is_ignored(make_driver: Any, caplog: pytest.LogCaptureFixture) -> None:
    driver = make_driver(slots=1)
    number = driver.submit(prompt="x", max_tokens=4)
    driver._next = number
    driver.engine.submit(number, _request(prompt="y"))
    driver.run()
    assert "in use" in caplog.text


def _request(**fields: Any) -> Any:
    from mesh.messages.inference import InferenceRequest

    return InferenceRequest(request_id="again", model="m", task="completion", **fields)


class Fault:
    """Breaks the model's steps while a poisoned token is in them."""

    def __init__(self, engine: Any, poison: int) -> None:
        self._run = engine._runner.run
        self._poison = poison
        engine._runner.run = self.run

    def run(self, shares: Any) -> torch.Tensor:
        if any(self._poison in share.sequence.tokens for share in shares):
            raise RuntimeError("poisoned")
        logits: torch.Tensor = self._run(shares)
        return logits


def test_a_broken_step_fails_only_who_breaks_it(make_driver: Any, prompts: list[list[int]], reference: Any) -> None:
    driver = make_driver(slots=4, budget=64)
    Fault(driver.engine, poison=450)
    good = [driver.submit(prompt=prompts[index], max_tokens=COUNT) for index in (4, 10, 5)]
    driver.step()
    hit = driver.submit(prompt=[450, 5, 6])
    driver.run()
    fail = driver.outcomes[hit].last
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.status) == ("BackendFailed", 502)
    for number, index in zip(good, (4, 10, 5), strict=True):
        assert flips(reference("llama", prompts[index], COUNT), driver.outcomes[number].ids) == 0
    assert driver.engine.stats.broken_steps == 1


def test_a_rebuilt_cache_is_empty_and_everybody_is_computed_again(
    make_driver: Any, prompts: list[list[int]], reference: Any
) -> None:
    driver = make_driver(slots=2, budget=8)
    survivors = [driver.submit(prompt=prompts[index], max_tokens=COUNT) for index in (10, 8)]
    for _ in range(3):
        driver.step()
    assert driver.engine._runner.arena.keys.any()
    driver.engine._rebuild()
    # The warm-up wrote the scrap and its own extent, and erased that.
    assert not driver.engine._runner.arena.keys[:, :, :-1].any()
    driver.run()
    for number, index in zip(survivors, (10, 8), strict=True):
        assert flips(reference("llama", prompts[index], COUNT), driver.outcomes[number].ids) == 0


def test_a_cache_that_cannot_copy_is_rebuilt(make_driver: Any, prompts: list[list[int]], reference: Any) -> None:
    driver = make_driver(slots=4)
    restore, storage = driver.engine._runner.arena.restore, driver.engine._runner.arena
    faults = [RuntimeError("the copy engine is gone")]

    def broken(*places: Any) -> None:
        if faults:
            raise faults.pop()
        restore(*places)

    storage.restore = broken
    driver.answer(prompt=prompts[10])
    numbers = [driver.submit(prompt=prompts[index], max_tokens=COUNT) for index in (10, 8)]
    driver.run()
    assert not faults
    for number, index in zip(numbers, (10, 8), strict=True):
        assert flips(reference("llama", prompts[index], COUNT), driver.outcomes[number].ids) == 0


class Full:
    """Runs out of memory in steps of more than `most` tokens."""

    def __init__(self, engine: Any, most: int, error: Exception) -> None:
        self.most = most
        self.sizes: list[int] = []
        self._run = engine._runner.run
        self._error = error
        engine._runner.run = self.run

    def run(self, shares: Any) -> torch.Tensor:
        size = sum(share.count for share in shares)
        if size > self.most:
            raise self._error
        self.sizes.append(size)
        logits: torch.Tensor = self._run(shares)
        return logits


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
    ),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("most", [3, 40])
def test_out_of_memory_makes_the_steps_smaller_and_loses_nobody(
    most: int, error: Exception, make_driver: Any, prompts: list[list[int]], reference: Any
) -> None:
    driver = make_driver(slots=8)
    full = Full(driver.engine, most, error)
    for prompt in prompts[:10]:
        driver.submit(prompt=prompt, max_tokens=COUNT)
    driver.run()
    assert sum(flips(reference("llama", prompt, COUNT), driver.outcomes[i].ids) for i, prompt in enumerate(prompts[:10])) == 0
    # Once there is memory again, the steps grow again.
    full.most = 1000
    full.sizes.clear()
    for seed in range(12):
        driver.submit(prompt=prompts[10], seed=seed, temperature=1.0, tenant=str(seed), max_tokens=60)
    driver.run(4000)
    assert max(full.sizes) > most


def test_a_single_token_without_memory_fails_its_request(make_driver: Any) -> None:
    driver = make_driver(slots=2)
    Full(driver.engine, 0, NO_MEMORY[0])
    fail = driver.answer(prompt=[5, 6, 7]).last
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.code) == ("BackendFailed", "out_of_memory")


def test_an_engine_that_stays_broken_raises(make_driver: Any) -> None:
    driver = make_driver(slots=1)
    Fault(driver.engine, poison=0)
    driver.submit(prompt=[0, 1, 2])
    with pytest.raises(RuntimeError, match="poisoned"):
        driver.step()


def test_nan_fails_one_sequence_and_leaves_no_trace(make_driver: Any, prompts: list[list[int]], reference: Any) -> None:
    driver = make_driver(slots=2)
    with torch.no_grad():
        driver.engine._runner.forward._embedding[450] = float("nan")
    sick = driver.submit(prompt=[450, *prompts[8]])
    well = driver.submit(prompt=prompts[9], max_tokens=COUNT)
    driver.run()
    fail = driver.outcomes[sick].last
    assert isinstance(fail, Fail)
    assert fail.code == "nan_logits"
    # Both slots again: the second one in the slot that held the NaN.
    again = [driver.submit(prompt=prompts[9], max_tokens=COUNT) for _ in range(2)]
    driver.run()
    for number in (well, *again):
        assert flips(reference("llama", prompts[9], COUNT), driver.outcomes[number].ids) == 0


def test_rates_are_measured_and_idle_is_idle(make_driver: Any) -> None:
    driver = make_driver(slots=2)
    assert driver.engine.step() is None
    assert driver.engine.load.step == 0
    driver.answer(prompt="A mesh is made of peers.", max_tokens=8)
    load = driver.engine.load
    assert load.step > 0
    assert load.prefill_rate > 0
    assert load.decode_rate > 0
    assert (load.running, load.waiting) == (0, 0)
    assert driver.engine.step() is None
