from __future__ import annotations

import json

from tests.figures import Figure, quantile, replaced, report, write

GOOD = Figure("a wait", 1.2345, "s", 2.0)
BAD = Figure("a loss", 3, "", 0)


def test_what_is_missed_fails(capsys):
    assert report([GOOD]) == 0
    assert report([GOOD, BAD]) == 1
    assert "missed: a loss" in capsys.readouterr().out


def test_quantiles():
    values = [float(value) for value in range(20, 0, -1)]
    assert quantile(values, 0.5) == 11
    assert quantile(values, 0.95) == 20
    assert quantile([7.0], 0.95) == 7


def test_each_part_writes_behind_its_own_mark(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nMade by hand.\n\n<!-- figures -->\n\n| old |\n")
    write([GOOD], mark="figures", file="figures.json", docs=tmp_path)
    write([BAD], mark="soak joins", file="soak-joins.json", docs=tmp_path)
    write([GOOD, GOOD], mark="figures", file="figures.json", docs=tmp_path)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\nMade by hand.\n\n<!-- figures -->\n\n| what | measured | target |\n")
    assert text.count("| a wait | 1.23 s | <= 2 s |") == 2
    assert text.endswith("<!-- soak joins -->\n\n| what | measured | target |\n| --- | --- | --- |\n| a loss | 3 | <= 0 |\n")
    assert "old" not in text
    assert json.loads((tmp_path / "soak-joins.json").read_text())["figures"] == [
        {"name": "a loss", "value": 3, "unit": "", "target": 0, "floor": None, "met": False}
    ]


def test_writing_twice_changes_nothing():
    once = replaced("# Page\n\n<!-- a -->\n\nold\n\n<!-- b -->\n\nkept\n", "<!-- a -->", "new")
    assert once == "# Page\n\n<!-- a -->\n\nnew\n\n<!-- b -->\n\nkept\n"
    assert replaced(once, "<!-- a -->", "new") == once
