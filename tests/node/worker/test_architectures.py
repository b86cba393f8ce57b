"""Every architecture against transformers' `generate`, in fp32: alone, in a batch, with known prefixes, preempted, resumed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mesh.errors import Misconfigured
from mesh.messages.inference import Done
from node.worker import loader
from node.worker.cache.arena import arena_shape
from node.worker.engine import Limits
from node.worker.loader import Options, load
from node.worker.scores import Rules
from tests.node.worker.architectures import EXACT, GENERATED, WINDOW, save
from tests.node.worker.greedy import MARGIN, flips

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 8
FLIPS = 2
"""Differences inside the margin that one architecture may have, of some 45 answers."""


class Bench:
    """One model, its own `generate`, and engines for it."""

    def __init__(self, folder: Path, model: Any, drive: Any) -> None:
        self.model = model
        self._folder = folder
        self._drive = drive

    def driver(self, *, slots: int, budget: int = 512, **options: Any) -> Any:
        limits = Limits(budget=budget, stretch=0.0)
        chosen = Options(path=self._folder, device="cpu", dtype="float32", slots=slots, limits=limits, **options)
        engine, ready = load(chosen, lambda _: None)
        self.ready = ready
        return self._drive(engine)

    def generated(self, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
        ids = torch.tensor([prompt])
        answer = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=COUNT,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return answer.sequences[0, len(prompt) :].tolist(), [logits[0] for logits in answer.logits]

    def forced(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[torch.Tensor]]:
        """What greedy decoding chooses behind each part of an answer: equal to it, if `generate` gives it."""
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        rows = list(logits[len(prompt) - 1 : len(prompt) - 1 + len(answer)])
        return [int(row.argmax()) for row in rows], rows


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Any, drive: Any) -> Bench:
    return Bench(tmp_path, save(tmp_path, request.param, tokenizer), drive)


def some_prompts(count: int, *, length: int | None = None) -> list[list[int]]:
    source = random.Random(11)
    return [[source.randrange(3, 400) for _ in range(length or 1 + 3 * index % 41)] for index in range(count)]


@pytest.mark.parametrize("bench", list(EXACT), indirect=True)
def test_an_architecture_is_exact_whatever_happens(bench: Bench) -> None:
    driver = bench.driver(slots=32)
    assert bench.ready.batching
    prompts = some_prompts(32)
    flipped = flips(bench.generated(prompts[13]), driver.answer(prompt=prompts[13], max_tokens=COUNT).ids)
    # A batch of 32 that comes in waves, and finds one prompt known.
    numbers = []
    for index, prompt in enumerate(prompts):
        numbers.append(driver.submit(prompt=prompt, max_tokens=COUNT))
        if index % 8 == 7:
            driver.step()
    driver.run()
    assert max(driver.batches) >= 28
    answers = [driver.outcomes[number].ids for number in numbers]
    flipped += sum(flips(bench.forced(*pair), pair[1]) for pair in zip(prompts, answers, strict=True))
    flipped += sum(flips(bench.generated(prompts[i]), answers[i]) for i in (0, 10))
    # Each conversation goes on: what it said is a prefix now.
    for index in (13, 14, 27):
        longer = [*prompts[index], *answers[index], 5, 6]
        flipped += flips(bench.generated(longer), driver.answer(prompt=longer, max_tokens=COUNT).ids)
    assert driver.engine.stats.cache.hits >= 3
    for index, cut in ((27, 1), (28, COUNT // 2)):
        prior = answers[index][:cut]
        assert prior + driver.answer(prompt=prompts[index], max_tokens=COUNT, prior=[prior]).ids == answers[index]
    assert flipped <= FLIPS


@pytest.mark.parametrize("bench", list(EXACT), indirect=True)
def test_preemption_and_cut_prompts_change_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # A single slab of 256 tokens for sequences that start in a half of it and outgrow that.
    token = arena_shape(bench.model, 1).bytes_per_token(torch.float32)
    monkeypatch.setattr(loader, "free_memory", lambda _: int(300 * token / loader.MEMORY_SHARE))
    driver = bench.driver(slots=4, budget=96, context=256)
    prompts = some_prompts(3, length=124)
    for prompt in prompts:
        driver.submit(prompt=prompt, max_tokens=COUNT)
    driver.run()
    assert driver.engine.stats.preemptions > 0
    answers = [driver.outcomes[number].ids for number in range(3)]
    assert sum(flips(bench.forced(*pair), pair[1]) for pair in zip(prompts, answers, strict=True)) <= 1
    assert all(isinstance(outcome.last, Done) for outcome in driver.outcomes.values())


@pytest.mark.parametrize("bench", list(GENERATED), indirect=True)
def test_what_attention_cannot_do_runs_on_generate(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    driver = bench.driver(slots=32)
    assert (bench.ready.batching, bench.ready.slots) == (False, 1)
    assert "plain generate, one request at a time" in caplog.text
    prompts = some_prompts(5)
    for prompt in prompts:
        driver.submit(prompt=prompt, max_tokens=COUNT)
    driver.run()
    assert max(driver.batches) == 1
    assert sum(flips(bench.generated(prompt), driver.outcomes[i].ids) for i, prompt in enumerate(prompts)) == 0


def test_sharded_weights_are_read_and_missing_shards_are_named(tmp_path: Path, tokenizer: Any, drive: Any) -> None:
    bench = Bench(tmp_path, save(tmp_path, "llama", tokenizer, max_shard_size="60KB"), drive)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert flips(bench.generated([5, 6, 7]), bench.driver(slots=2).answer(prompt=[5, 6, 7], max_tokens=COUNT).ids) == 0
    shards[1].unlink()
    with pytest.raises(Misconfigured, match=f"lacks the shard {shards[1].name}"):
        bench.driver(slots=2)


def test_a_model_that_loads_and_cannot_generate_is_refused(
    tmp_path: Path, tokenizer: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, save(tmp_path, "llama", tokenizer), drive)

    def broken(_: Any) -> None:
        raise IndexError("no such expert")

    monkeypatch.setattr("node.worker.engine.Engine.warm_up", broken)
    with pytest.raises(Misconfigured, match=r"cannot generate \(IndexError: no such expert\)"):
        bench.driver(slots=1)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_scores_without_peculiarities_are_torchs_own(window: int | None) -> None:
    torch.manual_seed(3)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    plain = Rules(window=window).attend(query, key, value)
    # A cap far above every score bends nothing, and a sink far below them takes nothing.
    bent = Rules(window=window, softcap=1e5, sinks=torch.full((3,), -1e4)).attend(query, key, value)
    assert torch.allclose(plain, bent, atol=MARGIN)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~seen, float("-inf"))
    capped = Rules(softcap=2.0)
    assert torch.equal(capped.attend(query, key, value, seen), capped.attend(query, key, value, added))
    full = Rules(sinks=torch.full((3,), 1e4)).attend(query, key, value)
    assert float(full.abs().max()) == 0
