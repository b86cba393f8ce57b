"""Fixtures of the tests in network namespaces: networks of one's own, and a wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fleet import tail, until
from tests.network.namespaces import Network, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def make_network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Network]]:
    """Makes networks, with the options of `Network`, for one test. When it fails, the end of every log is part of the report."""
    networks: list[Network] = []

    def make(**options: Any) -> Network:
        try:
            networks.append(Network(tmp_path / f"network-{len(networks)}", **options))
        except NotPermitted as error:
            pytest.skip(f"no network namespaces here: {error}")
        return networks[-1]

    yield make
    orphans = [pid for network in networks for pid in network.end()]
    report = getattr(request.node, "report", None)
    if report is not None and report.failed:
        for program in (program for network in networks for host in network.hosts for program in host.programs):
            print(f"--- {program.log.parent.name}/{program.log.name}\n{tail(program.log)}")
    assert not orphans, f"these outlived their program: {orphans}"


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    """One switch that passes everything on."""
    return make_network()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.report = report  # type: ignore[attr-defined]  # pytest's own recipe for fixtures that want the outcome
    return report


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until
