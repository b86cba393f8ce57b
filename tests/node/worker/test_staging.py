"""What a step tells the device arrives there, at once or one by one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from node.worker.loader import Options, load
from node.worker.runner import SlotRunner
from node.worker.staging import Staging
from tests.node.worker.conftest import Driver

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("together", [False, True])
def test_each_list_arrives_as_it_is(together: bool) -> None:
    staging = Staging(torch.device("cpu"))
    assert not staging.together
    staging.together = together
    lists = [[5], [], [7, -1, 2**40], [0, 0]]
    sent = staging.send(*lists)
    assert [tensor.tolist() for tensor in sent] == lists
    assert {tensor.dtype for tensor in sent} == {torch.int64}


def answers(folder: Path, *, together: bool) -> list[list[int]]:
    options = Options(path=folder, device="cpu", dtype="float32", slots=8)
    engine, _ = load(options, lambda _: None)
    runner: Any = engine._runner
    assert isinstance(runner, SlotRunner)
    runner.staging.together = together
    driver, source = Driver(engine), random.Random(3)
    numbers = []
    for length in (1, 40, 3, 200, 7, 2):
        numbers.append(driver.submit(prompt=[source.randrange(3, 400) for _ in range(length)], max_tokens=12))
        driver.step()
    driver.run()
    return [driver.outcomes[number].ids for number in numbers]


def test_one_copy_for_all_changes_no_answer(models_folder: Path) -> None:
    folder = models_folder / "mistral-window"
    assert answers(folder, together=True) == answers(folder, together=False)
