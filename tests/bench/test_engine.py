"""What the comparison of engines makes of its rounds."""

from __future__ import annotations

import pytest

from tests.bench.bandwidth import bandwidth
from tests.bench.engine import Found, figures


def test_one_request_is_held_against_what_the_memory_allows() -> None:
    rounds = [{"requests": 1, "tokens_per_second": rate, "first_token_ms": None} for rate in (250.0, 300.0, 320.0)]
    found: Found = {("ours", 1): rounds, ("ours without graphs", 1): rounds[:1]}
    made = {figure.name: figure for figure in figures(found, 600.0)}
    assert made["1 at once: what the memory allows"].value == 600
    part = made["1 at once: ours / what the memory allows"]
    assert (part.value, part.floor) == (pytest.approx(0.5), 0.6)
    assert "1 at once: ours without graphs" in made
    assert not any("memory" in figure.name for figure in figures(found))


def test_the_speed_of_memory_is_that_of_copies() -> None:
    assert bandwidth("cpu", size=1 << 16) > 0
