"""Switch policies of others, by entry point, and never trusted: one that fails is passed over for `fifo`."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from mesh.plugins import load_plugin, plugin_names
from node.multiplexer.policies import DEFAULT_POLICY, POLICIES, Decision

if TYPE_CHECKING:
    from node.multiplexer.policies import Knobs, Policy, Scene

GROUP = "infermesh.switch_policies"

logger = logging.getLogger(__name__)


def policy_names() -> list[str]:
    """The names of all policies that are installed, sorted."""
    return plugin_names(GROUP, POLICIES)


def check_policy(name: str) -> None:
    """Raise ValueError unless there is such a policy."""
    if name not in policy_names():
        raise ValueError(f"unknown switch policy {name!r}; give one of {', '.join(policy_names())}")


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises Misconfigured, which lists the names or says why a plug-in cannot be loaded."""
    if name in POLICIES:
        return POLICIES[name]
    policy = load_plugin(name, group=GROUP, kind="switch policy", ours=POLICIES, chapter="Multiplexer")
    return Contained(name, policy)


class Contained:
    """A plug-in as a policy that always answers."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.failures = 0
        self._name = name
        self._policy = policy

    def __call__(self, scene: Scene, knobs: Knobs) -> Decision:
        """What the plug-in says, or `fifo` instead of it."""
        try:
            decision = self._policy(scene, knobs)
            fault = _fault(decision, scene)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code; requests must not wait for ever because of it
            fault = f"it raised {type(error).__name__}"
        if fault is None:
            return decision
        self.failures += 1
        if self.failures == 1:
            logger.error("the switch policy %s failed, %s decides instead: %s", self._name, DEFAULT_POLICY, fault)
        return POLICIES[DEFAULT_POLICY](scene, knobs)


def _fault(decision: Any, scene: Scene) -> str | None:
    if not isinstance(decision, Decision):
        return "it gave no Decision"
    if decision.model is not None and decision.model not in {queue.model for queue in scene.queues}:
        return "it chose a model that nobody waits for"
    wait: Any = decision.wait
    if not isinstance(wait, int | float) or math.isnan(wait):
        return "it gave a wait that is no number"
    return None
