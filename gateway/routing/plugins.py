"""Policies of others: found by entry point, and never trusted with a request.

1. A plug-in is a `Policy` under the entry point group `infermesh.policies`; its name is the strategy's name. Ours win a clash.
2. One that raises, or does not give every candidate back once with a finite score, is passed over for that request: the default
   policy answers instead. It is counted each time and logged the first time of each kind.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from gateway.routing.policies import DEFAULT_POLICY, POLICIES
from gateway.routing.prediction import Ranked
from mesh.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    from gateway.routing.policies import Policy
    from gateway.routing.snapshot import Snapshot

GROUP = "infermesh.policies"

_logger = logging.getLogger(__name__)


def strategies() -> list[str]:
    """The names of all policies that are installed, sorted."""
    return plugin_names(GROUP, POLICIES)


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises Misconfigured, which lists the names or says why a plug-in cannot be loaded."""
    if name in POLICIES:
        return POLICIES[name]
    policy = load_plugin(name, group=GROUP, kind="strategy", ours=POLICIES, chapter="Routing")
    return Contained(name, policy)


def policy_failures(policy: Policy) -> dict[str, int]:
    """How often a plug-in was passed over, by what was wrong; nothing for a policy of ours."""
    return dict(policy.failures) if isinstance(policy, Contained) else {}


class Contained:
    """A plug-in as a policy that always answers."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.failures: Counter[str] = Counter()
        """By what was wrong."""
        self._name = name
        self._policy = policy

    def __call__(self, snapshot: Snapshot) -> list[Ranked]:
        """What the plug-in says, or the default policy instead of it."""
        try:
            # One more than there can be: who gives them without end is stopped here.
            ranked: list[Any] = list(islice(self._policy(snapshot), len(snapshot.candidates) + 1))
            fault = _fault(ranked, snapshot)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code; a request must not fail for it
            ranked, fault = [], f"it raised {type(error).__name__}"
        if fault is None:
            return ranked
        self.failures[fault] += 1
        if self.failures[fault] == 1:
            _logger.error("the strategy %s failed, %s answers instead: %s", self._name, DEFAULT_POLICY, fault)
        return POLICIES[DEFAULT_POLICY](snapshot)


def _fault(ranked: list[Any], snapshot: Snapshot) -> str | None:
    if not all(isinstance(item, Ranked) for item in ranked):
        return "it gave something else than Ranked"
    if sorted(id(item.candidate) for item in ranked) != sorted(map(id, snapshot.candidates)):
        return "it did not give every candidate back once"
    if not all(isinstance(item.score, int | float) and math.isfinite(item.score) for item in ranked):
        return "it gave a score that is no finite number"
    return None
