"""Fixtures of the system tests: a fleet of real processes, an HTTP client, a wait."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tests.fleet import Fleet, tail, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet of its own for one test. When the test fails, the end of every log is part of the report."""
    base = os.environ.get("INFERMESH_TEST_LOGS")
    logs = Path(tempfile.mkdtemp(prefix=f"{request.node.name[:40]}-", dir=base)) if base else tmp_path
    fleet = Fleet(logs)
    yield fleet
    orphans = fleet.end()
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        for program in fleet.programs:
            print(f"--- {program.log.name}\n{tail(program.log)}")
    assert not orphans, f"these outlived their program: {orphans}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]  # pytest's own recipe for fixtures that want the outcome
    return report


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@pytest.fixture
def chat() -> Callable[..., dict[str, Any]]:
    """Builds the body of a chat request."""

    def body(model: str, content: str = "Who are you?", **options: Any) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, **options}

    return body
