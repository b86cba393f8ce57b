"""How much of a prompt fits beside sequences that decode, by what was measured."""

from node.worker.pace import LEAST_TOKENS, Pace


def measured(*, stretch: float = 3.0) -> Pace:
    """50 ms a step without prompts, 1000 tokens a second of prompts alone."""
    pace = Pace(stretch)
    pace.measure(prompt_tokens=0, decoding=True, seconds=0.05)
    pace.measure(prompt_tokens=500, decoding=False, seconds=0.5)
    return pace


def test_nothing_is_held_back_before_anything_is_known_or_when_nobody_asked() -> None:
    assert Pace(3.0).allowance > 1 << 32
    assert measured(stretch=0.0).allowance > 1 << 32


def test_half_the_speed_of_prompts_alone_is_assumed_until_it_is_known() -> None:
    pace = measured()
    assert pace.allowance == 50
    pace.measure(prompt_tokens=50, decoding=True, seconds=0.05 + 50 / 800)
    assert pace.allowance == 80
    # Prompts that came alone say nothing about those beside others.
    pace.measure(prompt_tokens=500, decoding=False, seconds=0.1)
    assert pace.allowance == 80


def test_slower_is_believed_sooner_than_faster() -> None:
    pace = measured()
    pace.measure(prompt_tokens=80, decoding=True, seconds=0.15)
    assert pace.allowance == 80
    pace.measure(prompt_tokens=80, decoding=True, seconds=0.25)
    assert pace.allowance == 60
    pace.measure(prompt_tokens=80, decoding=True, seconds=0.15)
    assert pace.allowance == 64


def test_a_prompt_gets_on_however_slow_it_is() -> None:
    pace = measured()
    for _ in range(20):
        pace.measure(prompt_tokens=16, decoding=True, seconds=60.0)
    assert pace.allowance == LEAST_TOKENS
