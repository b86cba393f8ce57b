"""An answer is the same whatever else happens: prefixes that were known, preemption, resumption on another node."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mesh.messages.inference import Accepted, Delta, Done, Fail
from tests.node.worker.greedy import COUNT, flips

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 77}


def shared_prompts(count: int, *, shared: int = 90, seed: int = 3) -> list[list[int]]:
    source = random.Random(seed)
    base = [source.randrange(3, 400) for _ in range(shared)]
    return [
        [*base[: shared - 7 * (index % 3)], *(source.randrange(3, 400) for _ in range(index % 5 + 1))] for index in range(count)
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral-window"])
def test_a_known_prefix_changes_nothing(kind: str, make_driver: Any, reference: Any, record_property: Any) -> None:
    driver = make_driver(kind, slots=8)
    prompts = shared_prompts(10)
    driver.answer(prompt=prompts[0], max_tokens=COUNT)
    for prompt in prompts:
        driver.submit(prompt=prompt, max_tokens=COUNT)
    driver.run()
    flipped = sum(flips(reference(kind, prompt, COUNT), driver.outcomes[1 + i].ids) for i, prompt in enumerate(prompts))
    record_property("flips_inside_margin", flipped)
    assert flipped <= 1
    stats = driver.engine.stats.cache
    assert (stats.hits, stats.misses) == (10, 1)
    assert stats.protected_size == 0
    assert 0 < stats.total_cached == stats.evictable_size <= stats.total_capacity


def test_the_very_same_prompt_computes_one_token(make_driver: Any, reference: Any) -> None:
    driver = make_driver(slots=2)
    prompt = shared_prompts(1)[0]
    first = driver.answer(prompt=prompt, max_tokens=COUNT)
    computed = []
    run = driver.engine._runner.run
    driver.engine._runner.run = lambda shares: computed.append(sum(share.count for share in shares)) or run(shares)
    assert driver.answer(prompt=prompt, max_tokens=COUNT).ids == first.ids
    assert computed[0] == 1
    # And an answer that was given is a prefix of what comes next in a conversation.
    driver.answer(prompt=[*prompt, *first.ids, 5, 6], max_tokens=1)
    assert computed[-1] == 3


def test_another_tenant_finds_nothing(make_driver: Any) -> None:
    driver = make_driver(slots=2)
    prompt = shared_prompts(1)[0]
    for tenant in ("a", "b", "a"):
        driver.answer(prompt=prompt, tenant=tenant, max_tokens=2)
    stats = driver.engine.stats.cache
    assert (stats.hits, stats.misses) == (1, 2)


def test_prefixes_come_and_go_under_pressure(make_driver: Any, reference: Any) -> None:
    # 1 MiB: 1365 tokens, of which a slab takes 512.
    driver = make_driver(slots=2, cache_mib=1)
    assert driver.engine.stats.cache.total_capacity == 512
    prompts = [prompt for seed in range(6) for prompt in shared_prompts(3, seed=seed)]
    for prompt in prompts:
        driver.submit(prompt=prompt, max_tokens=12)
    driver.run()
    assert sum(flips(reference("llama", prompt, 12), driver.outcomes[i].ids) for i, prompt in enumerate(prompts)) <= 1
    stats = driver.engine.stats.cache
    assert stats.evictions > 0
    assert stats.hits > 0


@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_preemption_changes_nothing(kind: str, make_driver: Any, reference: Any, prompts: list[list[int]]) -> None:
    # One slab of 512 tokens for eight sequences that start in an eighth of it each and grow.
    driver = make_driver(kind, slots=8, cache_mib=1, context=512)
    long = [(prompt * 110)[:110] for prompt in prompts[:6]]
    for index, prompt in enumerate(long):
        driver.submit(prompt=prompt, max_tokens=60, **(SAMPLED if index % 2 else {}))
    driver.run(5000)
    assert driver.engine.stats.preemptions > 0
    assert sum(flips(reference(kind, long[i], 60), driver.outcomes[i].ids) for i in (0, 2, 4)) <= 1
    for index in (1, 3, 5):
        assert driver.outcomes[index].ids == make_driver(kind, slots=1).answer(prompt=long[index], max_tokens=60, **SAMPLED).ids
    for outcome in driver.outcomes.values():
        assert isinstance(outcome.last, Done)
        assert sum(isinstance(event, Accepted) for event in outcome.events) == 1


@pytest.mark.parametrize("kind", ["llama", "mistral-window", "stablelm"])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, SAMPLED])
def test_resuming_goes_on_as_if_never_interrupted(
    kind: str, sampling: dict[str, Any], make_driver: Any, prompts: list[list[int]]
) -> None:
    fields = {"prompt": prompts[8], "max_tokens": 30, **sampling}
    whole = make_driver(kind, slots=1).answer(**fields)
    other = make_driver(kind, slots=4)
    deltas = [event for event in whole.events if isinstance(event, Delta)]
    cuts = (0, 1, 7, 29, 30) if len(deltas) == 30 else (0, 1, len(deltas) - 1, len(deltas))
    for cut in cuts:
        resumed = other.answer(**fields, prior=[whole.ids[:cut]])
        rest = [event for event in resumed.events if isinstance(event, Delta)]
        assert rest == deltas[cut:]
        assert isinstance(resumed.last, Done)
        assert isinstance(whole.last, Done)
        assert resumed.last.finish_reason == whole.last.finish_reason
        assert resumed.last.usage == whole.last.usage


def test_resuming_in_the_middle_of_a_stop_string_still_stops(make_driver: Any) -> None:
    fields: dict[str, Any] = {"prompt": "The engine", "temperature": 1.0, "seed": 5, "max_tokens": 60}
    text = make_driver(slots=1).answer(**fields).text
    fields["stop"] = [text[20:26]]
    whole = make_driver(slots=1).answer(**fields)
    assert whole.last.finish_reason == "stop"
    other = make_driver(slots=1)
    for cut in range(len(whole.ids) + 1):
        resumed = other.answer(**fields, prior=[whole.ids[:cut]])
        given = [event.text for event in whole.events if isinstance(event, Delta)][:cut]
        assert "".join(given) + resumed.text == whole.text
        assert resumed.last.finish_reason == "stop"


@pytest.mark.parametrize(
    "prior", [[[512]], [[-1]], [[5], [6]], [[5] * 31]], ids=["out of vocabulary", "negative", "two choices", "behind the end"]
)
def test_a_prior_that_cannot_be_is_refused(prior: list[list[int]], make_driver: Any) -> None:
    fail = make_driver(slots=1).answer(prompt="x", max_tokens=30, prior=prior).last
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.param) == ("BadRequest", "prior")
