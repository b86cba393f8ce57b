"""The order of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SLOW = [Path(__file__).parent / name for name in ("system", "network")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first: several test processes then end at about the same time."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in SLOW))
