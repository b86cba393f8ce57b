"""What is told of the run, and where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.reference import Verdict
from tests.chaos.survive import Killing, figures, publish
from tests.chaos.traffic import Answer

if TYPE_CHECKING:
    from pathlib import Path


def test_failures_differences_and_flips_are_told_apart(tmp_path: Path) -> None:
    answers = [Answer({}, tokens=50_000, ends=["done"]) for _ in range(4)] + [Answer({}, ends=["cut"])]
    verdicts = [Verdict(), Verdict(), Verdict("differs", flipped=True), Verdict("differs"), Verdict("ended with cut")]
    found = figures(answers, verdicts, Killing(15.0))
    told = {figure.name.split(": ", 1)[1]: figure for figure in found}
    assert (told["requests that failed, of 5"].value, told["answers that differ from the undisturbed run"].value) == (1, 1)
    assert told["such answers"].value == 1
    rate = told["answers that part from the undisturbed run within the margin of 1e-4, per 50000 tokens of the engine"]
    assert (rate.value, rate.met) == (0.25, True)
    assert [figure.met for figure in found[:2]] == [False, False]
    (tmp_path / "benchmarks.md").write_text("# Benchmarks\n\n<!-- chaos -->\n\nother\n")
    publish(found, docs=tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "<!-- chaos -->\n\nother\n" in page
    assert "| the same: answers that differ from the undisturbed run | 1 | <= 0 |" in page.split("<!-- chaos survive -->")[1]
    assert (tmp_path / "chaos-survive.json").exists()
