"""Results that are kept, merged and told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.chaos.shards import Result, Shard, figures, merged, publish

if TYPE_CHECKING:
    from pathlib import Path


def result(number: int = 0, kind: str = "node-kill", **more: Any) -> Result:
    known = {"requests": 8, "tokens": 80, "failed": 0, "differing": 0, "gaps": [0.1], "late": [], "wrong": [], "seconds": 1.0}
    return Result(kind=kind, seed=1, number=number, **{**known, **more})


def test_a_shard_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = (Shard(tmp_path, "node-kill", seed=1, faults=5, part=part, parts=2) for part in (1, 2))
    assert (first.left, second.left) == ([0, 2, 4], [1, 3])
    first.add(result(0))
    second.add(result(3))
    again = [Shard(tmp_path, "node-kill", seed=1, faults=5, part=part, parts=2) for part in (1, 2)]
    assert [shard.left for shard in again] == [[2, 4], [1]]
    assert [one.number for one in merged(tmp_path)] == [0, 3]


def test_a_fault_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    Shard(tmp_path, "node-kill", seed=1, faults=1).add(result(0))
    Shard(tmp_path, "node-kill", seed=1, faults=2, part=1, parts=2).add(result(0))
    assert merged(tmp_path) == [result(0)]


def test_figures_take_the_client_that_was_hit_worst_and_count_what_failed() -> None:
    results = [
        result(0, gaps=[0.1, 0.9], late=[0.5]),
        result(1, gaps=[3.0], failed=1, differing=2, wrong=["a", "b", "c"]),
        result(0, kind="latency", gaps=[], wrong=["odd"]),
    ]
    told = {figure.name: figure for figure in figures(results)}
    assert told["node-kill: the same, worst"].value == 3.0
    assert told["node-kill: the same, p95"].target == 1.0
    assert not told["node-kill: the same, p95"].met
    assert told["node-kill: answers in one piece come later by, p95 of 1"].value == 0.5
    assert told["latency: the same, worst"].value == 0.0
    assert [told[f"all kinds: {name}"].value for name in ("faults", "requests", "tokens")] == [3, 24, 240]
    assert [figure.value for figure in figures(results)[-3:]] == [1, 2, 1]
    assert not any(figure.met for figure in figures(results)[-3:])


def test_flips_are_counted_by_the_tokens_of_the_engine_and_are_not_wrong() -> None:
    results = [result(0, tokens=10**9), result(0, kind="worker-kill", tokens=100_000, flipped=1)]
    told = {figure.name: figure for figure in figures(results)}
    rate = told["all kinds: answers that part from the undisturbed run within the margin of 1e-4, per 50000 tokens of the engine"]
    assert (rate.value, rate.met) == (0.5, True)
    assert all(figure.met for figure in figures(results)[-3:])
    again = [*results, result(1, kind="worker-kill", tokens=1000, flipped=2)]
    assert not next(figure for figure in figures(again) if figure.name == rate.name).met


def test_what_is_published_has_table_and_every_fault(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("# Benchmarks\n\n<!-- chaos -->\n\nold\n\n<!-- next -->\n\nkept\n")
    publish([result(0)], docs=tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "node-kill: the same, p95 | 0.1 s | <= 1 s |" in page
    assert "old" not in page
    assert page.endswith("<!-- next -->\n\nkept\n")
    assert '"number": 0' in (tmp_path / "chaos.json").read_text()
