"""The life of a node: bind, load, join, say ready; then leave, drain, end.

1. Everything that the operator got wrong is found before the first process is started, and ends the start with Misconfigured.
2. The mesh hears of every change of a model's state in the moment it happens, and of the load every `LOAD_INTERVAL`.
3. On the way out nothing new is taken, what runs may end within the drain time-out, and no worker is left behind.
4. What a node that was killed left running on this state folder is ended before anything is started.
5. A model that is refused is shown as failed beside others that work; when none can work, the start has failed.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError, Misconfigured
from mesh.http.keys import Keys
from mesh.network import network_peer
from node.backends.build import build, build_found
from node.hardware import discover
from node.http import url_of
from node.keeping import Keeper
from node.leftovers import FILE, Leftovers
from node.metrics import Meter
from node.multiplexer.control import orders_of
from node.outlets import Outlets
from node.progress import LoadingProgress
from node.service import NodeService
from node.way_in import keep_asking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.peer import Peer
    from mesh.runtime import Program
    from node.backends.build import Built
    from node.config import NodeConfig

LOAD_INTERVAL = 0.5
"""Seconds between looks at the load; `announce` sends it on when it has changed."""

logger = logging.getLogger(__name__)


async def serve(program: Program, config: NodeConfig) -> None:
    """Run a node until `program.stopping` is set and it has drained. Raises Misconfigured when it cannot start."""
    progress = LoadingProgress()
    try:
        built = build(config, on_loading=progress.loading)
        if config.auto_discover:
            built = [*built, build_found(config, built)]
        await Node(program, config, built, progress).run()
    finally:
        progress.close()


class Node:
    """One node, from its ports to its place in the mesh."""

    def __init__(self, program: Program, config: NodeConfig, built: Sequence[Built], progress: LoadingProgress) -> None:
        self._program = program
        self._config = config
        self._backends = [backend for each in built for backend in each.backends]
        self._progress = progress
        self._service = NodeService(self._backends)
        self._keeper = Keeper(self._service, keeps=self._service.gives_tokens)
        self._outlets = Outlets(built, self._service, keys=Keys.read(config.api_keys) if config.api_keys else None)
        self._leftovers = Leftovers(program.state_dir / FILE)

    async def run(self) -> None:
        """The whole life."""
        config, program = self._config, self._program
        await self._leftovers.end()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._keeper.run)
            await self._outlets.open(nursery, name=program.name, host=config.host)
            peer = await self._peer()
            self._outlets.tell_network(peer.nat.report)
            peer.measuring.measure = Meter(lambda: [backend.status() for backend in self._backends]).measure
            peer.managing.manage = orders_of(self._backends)
            self._service.on_change(partial(self._changed, peer))
            self._announce(peer)
            await self._start(nursery, peer)
            nursery.start_soon(self._keep_announcing, peer)
            if config.registry_url:
                nursery.start_soon(keep_asking, peer, config.registry_url, config.heartbeat_interval)
            program.ready(addresses=peer.addresses, http=url_of(config.host, self._outlets.first + 1))
            await program.stopping.wait()
            await self._leave(peer)
            nursery.cancel_scope.cancel()
        self._leftovers.note(())

    async def _peer(self) -> Peer:
        hardware = await discover(self._config.device)
        return network_peer(self._program, self._config, self._keeper, hardware=hardware, ports=self._outlets.ports)

    async def _start(self, nursery: trio.Nursery, peer: Peer) -> None:
        """Join the mesh and load the models at the same time; return when all of it has settled."""
        async with trio.open_nursery() as starting:
            starting.start_soon(nursery.start, peer.run)
            for backend in self._backends:
                starting.start_soon(nursery.start, backend.run)
        statuses = [backend.status() for backend in self._backends]
        if all(status.refused for status in statuses):
            raise Misconfigured("; ".join(status.last_error or "the model was refused" for status in statuses))

    def _announce(self, peer: Peer) -> None:
        peer.announce(self._outlets.marked(self._service.entries()), self._service.load())

    def _changed(self, peer: Peer) -> None:
        self._progress.changed(self._service.entries())
        self._leftovers.note(pid for backend in self._backends if (pid := backend.status().pid) is not None)
        try:
            self._announce(peer)
        except MeshError as error:
            # It grew over the record's limit while it ran: the others hear what was announced before.
            logger.error("cannot tell the mesh what changed: %s", error.message)  # noqa: TRY400 - the message says it all

    async def _keep_announcing(self, peer: Peer) -> None:
        while True:
            await trio.sleep(LOAD_INTERVAL)
            self._changed(peer)

    async def _leave(self, peer: Peer) -> None:
        limit = self._config.drain_timeout
        with trio.move_on_after(limit) as scope:
            await peer.leave()
            self._service.drain()
            self._outlets.stop()
            await self._service.idle()
            await self._outlets.stopped()
            await peer.close()
        if scope.cancelled_caught:
            logger.warning("%d requests did not end within the drain time-out of %g s", self._service.running, limit)
