"""What the tests of products and of whole layers go through: both types, one thread and two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from node.worker.native.compiler import Unavailable
from node.worker.native.products import Native

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """A type that products are computed in here."""
    made: torch.dtype = request.param
    try:
        Native(made)
    except Unavailable as reason:
        pytest.skip(str(reason))
    return made


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
