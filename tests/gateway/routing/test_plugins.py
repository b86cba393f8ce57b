import logging
import math
from importlib.metadata import EntryPoint

import pytest

from gateway.routing import plugins
from gateway.routing.plugins import Contained, policy_named, strategies
from gateway.routing.policies import POLICIES
from gateway.routing.prediction import Ranked
from gateway.routing.snapshot import Candidate, Snapshot
from mesh import plugins as mesh_plugins
from mesh.errors import Misconfigured
from mesh.identity import PeerId

NODES = tuple(Candidate(peer_id=PeerId(name), name=name, slots=4) for name in "abc")
TAKEN = Snapshot(model="m", candidates=NODES)


def last_first(snapshot: Snapshot) -> list[Ranked]:
    return [Ranked(candidate, float(place)) for place, candidate in enumerate(reversed(snapshot.candidates))]


not_a_policy = "hello"


def broken(_snapshot: Snapshot) -> list[Ranked]:
    raise KeyError("secret prompt")


@pytest.fixture
def installed(monkeypatch):
    """Entry points as an installed package would have them."""

    def install(**targets: str) -> None:
        points = [EntryPoint(name, value, plugins.GROUP) for name, value in targets.items()]

        def find(*, group: str, name: str | None = None) -> list[EntryPoint]:
            return [point for point in points if group == plugins.GROUP and name in (None, point.name)]

        monkeypatch.setattr(mesh_plugins, "entry_points", find)

    return install


def names(ranked: list[Ranked]) -> list[str]:
    return [item.candidate.name for item in ranked]


def test_a_policy_of_others_is_found_by_its_name(installed, monkeypatch):
    installed(last_first="gateway.routing.policies:round_robin", round_robin="json:loads")
    assert "last_first" in strategies()
    assert names(policy_named("last_first")(TAKEN)) == ["a", "b", "c"]
    assert policy_named("round_robin") is POLICIES["round_robin"]


def test_one_that_cannot_be_loaded_is_refused_with_what_is_wrong(installed):
    installed(gone="no_such_module:policy", odd="gateway.routing.policies:GOLDEN")
    with pytest.raises(Misconfigured, match=r"'gone' \(no_such_module:policy\) cannot be loaded.*mend or remove it"):
        policy_named("gone")
    with pytest.raises(Misconfigured, match="is no function"):
        policy_named("odd")


def test_a_good_one_decides():
    policy = Contained("mine", last_first)
    assert names(policy(TAKEN)) == ["c", "b", "a"]
    assert not policy.failures


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (broken, "it raised KeyError"),
        (lambda _: None, "it raised TypeError"),
        (lambda _: "abc", "it gave something else than Ranked"),
        (lambda _: [], "it did not give every candidate back once"),
        (lambda taken: last_first(taken)[:2], "it did not give every candidate back once"),
        (lambda taken: [last_first(taken)[0]] * 3, "it did not give every candidate back once"),
        (lambda taken: [Ranked(one, math.nan) for one in taken.candidates], "it gave a score that is no finite number"),
        (lambda taken: [Ranked(one, None) for one in taken.candidates], "it gave a score that is no finite number"),
    ],
)
def test_one_that_fails_is_named_counted_and_replaced_for_that_request(policy, fault, caplog):
    contained = Contained("mine", policy)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert sorted(names(contained(TAKEN))) == ["a", "b", "c"]
    assert contained.failures == {fault: 3}
    [record] = caplog.records
    assert "mine" in record.message
    assert fault in record.message
    assert "secret prompt" not in caplog.text


def test_one_that_never_ends_or_wants_to_end_the_program_is_contained():
    def endless(taken: Snapshot):
        while True:
            yield Ranked(taken.candidates[0], 0.0)

    def leaves(_taken: Snapshot) -> list[Ranked]:
        raise SystemExit(3)

    for policy, fault in ((endless, "it did not give every candidate back once"), (leaves, "it raised SystemExit")):
        contained = Contained("theirs", policy)
        assert contained(TAKEN) == POLICIES["predicted_latency"](TAKEN)
        assert plugins.policy_failures(contained) == {fault: 1}
    assert plugins.policy_failures(POLICIES["round_robin"]) == {}
