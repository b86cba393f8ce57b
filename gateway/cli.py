"""The program `mesh-gateway`."""

from __future__ import annotations

import sys

import trio

from gateway.app import Gateway
from gateway.config import GatewayConfig, check_binding
from gateway.dispatch import DispatchLimits
from mesh.http import serve as serve_http
from mesh.peer import Peer, PeerSettings
from mesh.runtime import Program, launch
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport


def main() -> None:
    """Run the program and exit."""
    sys.exit(launch("gateway", GatewayConfig, serve, description="Let clients use the mesh: one OpenAI-compatible endpoint."))


async def serve(program: Program, config: GatewayConfig) -> None:
    """Serve HTTP, join the mesh, and finish what is in flight when the program is told to stop."""
    check_binding(config)
    peer = _peer(program, config)
    gateway = Gateway(peer.registry, strategy=config.strategy, limits=_limits(config), max_requests=config.max_requests)
    async with trio.open_nursery() as mesh:
        with trio.CancelScope() as drain:
            await _serve_clients(program, config, peer, gateway, mesh, drain)
        await peer.close()
        mesh.cancel_scope.cancel()


async def _serve_clients(
    program: Program, config: GatewayConfig, peer: Peer, gateway: Gateway, mesh: trio.Nursery, drain: trio.CancelScope
) -> None:
    """Returns once `stopping` was set and every answer is out; `drain` gets the deadline for that."""
    stopping = trio.Event()

    async def listen(*, task_status: trio.TaskStatus[int]) -> None:
        await serve_http(gateway.router, config.host, config.port, stopping=stopping, task_status=task_status)

    async with trio.open_nursery() as clients:
        # The port first: when it is taken, the mesh never hears of this gateway.
        port: int = await clients.start(listen)
        await mesh.start(peer.run)
        mesh.start_soon(gateway.run, peer.addresses)
        program.ready(addresses=peer.addresses, http=_url(config.host, port))
        await program.stopping.wait()
        drain.deadline = trio.current_time() + config.drain_timeout
        stopping.set()
        await peer.leave()


def _peer(program: Program, config: GatewayConfig) -> Peer:
    settings = PeerSettings(
        identity=program.identity,
        role="gateway",
        name=program.name,
        mesh=program.access.mesh,
        bootstrap=program.access.bootstrap,
        mdns=config.mdns,
        access=program.access,
        links_per_model=config.links_per_model,
    )
    direct = DirectTransport(program.identity, config.listen) if config.direct else None
    return Peer(settings, Libp2pTransport(program.identity, config.listen), direct=direct)


def _limits(config: GatewayConfig) -> DispatchLimits:
    return DispatchLimits(
        max_failures=config.max_failures,
        queue_wait=config.queue_wait,
        first_token=config.first_token_timeout,
        stall=config.stall_timeout,
        total=config.request_timeout,
    )


def _url(host: str, port: int) -> str:
    """Where clients on this machine reach the gateway."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]", "localhost": "127.0.0.1"}.get(host, host)
    return f"http://{shown}:{port}"
