"""A short soak: whatever clients do, every request ends once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.soak.engine import Soak, small_engine

if TYPE_CHECKING:
    from pathlib import Path


def test_three_hundred_requests_of_every_kind_end_once_each(tmp_path: Path) -> None:
    report = Soak(small_engine(tmp_path), 300, seed=1).run(range(300))
    assert report.faults == []
    assert sum(report.ends.values()) == 300
    assert {"stop", "length", "cancelled", "invalid_request", "context_length_exceeded", "busy"} <= set(report.ends)
    assert report.broken_steps > 0
    assert report.preemptions > 0
    assert report.hit_rate > 0
