"""Penalties against the formulas that everybody uses."""

from __future__ import annotations

import pytest
import torch

from node.worker.output.penalties import Adjuster, Penalties, ban


def adjusted(penalties: Penalties, prompt: list[int], said: list[int]) -> list[float]:
    adjuster = Adjuster(penalties, prompt)
    for token in said:
        adjuster.add(token)
    row = torch.tensor([2.0, -2.0, 1.0, 0.5, -1.0])
    adjuster.apply(row)
    return row.tolist()


def test_nothing_asked_for_changes_nothing() -> None:
    assert adjusted(Penalties(), [0, 1], [2, 2]) == [2.0, -2.0, 1.0, 0.5, -1.0]


def test_repetition_counts_prompt_and_output_once_each() -> None:
    assert adjusted(Penalties(repetition=2.0), [0, 1, 1], [2, 2]) == [1.0, -4.0, 0.5, 0.5, -1.0]


def test_presence_and_frequency_count_the_output_alone() -> None:
    found = adjusted(Penalties(presence=0.5, frequency=0.25), [0], [2, 2, 4])
    assert found == pytest.approx([2.0, -2.0, 0.0, 0.5, -1.75])


def test_bias_comes_first() -> None:
    assert adjusted(Penalties(bias={0: -4.0, 3: 1.5}, repetition=2.0), [0], []) == [-4.0, -2.0, 1.0, 2.0, -1.0]


def test_a_ban_leaves_something() -> None:
    row = torch.tensor([1.0, 2.0])
    ban(row, [1])
    assert row.argmax() == 0
    ban(row, [0])
    assert row.argmax() == 0
