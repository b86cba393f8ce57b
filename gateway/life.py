"""The life of a gateway: bind, join, serve; then leave, let what is in flight finish, end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from gateway.admission import AdmissionLimits
from gateway.app import Gateway
from gateway.config import GatewayConfig, check_binding
from gateway.dispatch import DispatchLimits
from gateway.registry_view.announce import keep_announcing
from gateway.registry_view.foreign import ForeignServices
from gateway.registry_view.store import ServiceStore
from gateway.way_in import WayIn
from mesh.errors import Misconfigured
from mesh.http import serve as serve_http
from mesh.loopback import Loopback
from mesh.network import network_peer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.http import Router
    from mesh.peer import Peer
    from mesh.runtime import Program

logger = logging.getLogger(__name__)


async def serve(program: Program, config: GatewayConfig) -> None:
    """Serve HTTP, join the mesh, and finish what is in flight when the program is told to stop."""
    check_binding(config)
    foreign = ForeignServices(ServiceStore(program.state_dir / "services.sqlite3"), via=program.identity.peer_id)
    peer = network_peer(program, config, foreign, links_per_model=config.links_per_model)
    gateway = Gateway(
        peer.registry,
        foreign=foreign,
        strategy=config.strategy,
        limits=_limits(config),
        admission=_admission(config),
        measuring=peer.measuring,
    )
    gateway.dispatch.models.missing = peer.seek
    WayIn(peer).mount(gateway.router)
    async with trio.open_nursery() as mesh:
        await mesh.start(foreign.run)
        with trio.CancelScope() as drain:
            await _serve_clients(program, config, peer, gateway, mesh, drain)
        await peer.close()
        mesh.cancel_scope.cancel()


async def _serve_clients(
    program: Program, config: GatewayConfig, peer: Peer, gateway: Gateway, mesh: trio.Nursery, drain: trio.CancelScope
) -> None:
    """Returns once `stopping` was set and every answer is out; `drain` gets the deadline for that."""
    stopping = trio.Event()

    async def listen(router: Router, port: int, *, task_status: trio.TaskStatus[int]) -> None:
        await serve_http(router, config.host, port, stopping=stopping, task_status=task_status)

    async with trio.open_nursery() as clients:
        # The ports first: when one is taken, the mesh never hears of this gateway.
        port: int = await clients.start(listen, gateway.router, config.port)
        if config.registry_port is not None:
            await _serve_registry(config, lambda: clients.start(listen, gateway.registry_router, config.registry_port))
        peer.settings.ports["service"] = port
        await mesh.start(peer.run)
        mesh.start_soon(gateway.run)
        mesh.start_soon(keep_announcing, gateway.foreign, Loopback(peer, gateway.foreign))
        program.ready(addresses=peer.addresses, http=_url(config.host, port))
        await program.stopping.wait()
        drain.deadline = trio.current_time() + config.drain_timeout
        stopping.set()
        await peer.leave()
        await _finish_foreign(peer, gateway.foreign)


async def _serve_registry(config: GatewayConfig, start: Callable[[], Awaitable[int]]) -> None:
    try:
        port = await start()
    except Misconfigured as error:
        raise Misconfigured(f"--registry-port {config.registry_port}: {error.message}") from error
    logger.info("the registry's endpoints are at %s as well", _url(config.host, port))


async def _finish_foreign(peer: Peer, foreign: ForeignServices) -> None:
    """Let end what other gateways asked our foreign services for."""
    await foreign.idle()
    async with trio.open_nursery() as nursery:
        for link in list(peer.links.values()):
            nursery.start_soon(link.flush)


def _limits(config: GatewayConfig) -> DispatchLimits:
    return DispatchLimits(
        max_failures=config.max_failures,
        queue_wait=config.queue_wait,
        loading_wait=config.loading_wait,
        hedge=config.hedge,
        first_token=config.first_token_timeout,
        stall=config.stall_timeout,
        total=config.request_timeout,
    )


def _admission(config: GatewayConfig) -> AdmissionLimits:
    return AdmissionLimits(
        requests=config.max_requests,
        waiting=config.max_waiting,
        tenant_waiting=config.max_tenant_waiting,
        wait=config.max_wait,
    )


def _url(host: str, port: int) -> str:
    """Where clients on this machine reach the gateway."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]", "localhost": "127.0.0.1"}.get(host, host)
    return f"http://{shown}:{port}"
