"""The life of a node: bind, load, join, say ready; then leave, drain, end.

1. Everything that the operator got wrong is found before the first process is started, and ends the start with Misconfigured.
2. The mesh hears of every change of a model's state in the moment it happens, and of the load every `LOAD_INTERVAL`.
3. On the way out nothing new is taken, what runs may end within the drain time-out, and no worker is left behind.
4. A model that is refused is shown as failed beside others that work; when none can work, the start has failed.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.discovery.mdns import Mdns
from mesh.errors import Misconfigured
from mesh.peer import Peer, PeerSettings
from mesh.transport.libp2p import Libp2pTransport
from node.backends.build import build_backends
from node.hardware import discover
from node.http import Identification, Ports, url_of
from node.progress import LoadingProgress
from node.service import NodeService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.runtime import Program
    from node.backends.base import Backend
    from node.config import NodeConfig

LOAD_INTERVAL = 0.5
"""Seconds between looks at the load; `announce` sends it on when it has changed."""

logger = logging.getLogger(__name__)
