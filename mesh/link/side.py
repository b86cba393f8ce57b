"""What the owner of a link brings to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.link.features import FEATURES
from mesh.messages.link import Drained, Heartbeat, Keys, Leave, PathControl, Records, Upgrade, UpgradeOffer
from mesh.messages.manage import ManageControl
from mesh.messages.metrics import MetricsControl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mesh.link.link import Link
    from mesh.link.proof import Credentials
    from mesh.messages.link import Hello, ModelLoad
    from mesh.service import InferenceService

Control = Heartbeat | Records | Leave | Keys | Upgrade | UpgradeOffer | Drained | PathControl | MetricsControl | ManageControl
"""What a link tells its owner."""


async def _ignore(_link: Link, _message: Control) -> None:
    """Hear nothing."""


@dataclass(frozen=True, kw_only=True)
class LinkSide:
    """What our side brings to a link. The callables are asked when it matters, so they always tell the present."""

    hello: Callable[[], Hello]
    features: frozenset[str] = FEATURES
    """Of the link itself; they are told beside those that `hello` names."""
    credentials: Credentials | None = None  # of a private mesh
    service: InferenceService | None = None
    load: Callable[[], Mapping[str, ModelLoad]] = dict
    admit: Callable[[Link], None] = lambda _link: None
    """Called once the other side's hello is checked. A MeshError that it raises refuses the link, with its code and message."""
    up: Callable[[Link], None] = lambda _link: None
    """Called once both sides are in, before anything else is read."""
    heard: Callable[[Link, Control], Awaitable[None]] = _ignore
    """Called for each control message, after the link took it in. The reader waits for it."""
