"""Finds peers on the local network by multicast DNS, the way libp2p does: service `_p2p._udp.local.`.

1. It says whom to dial, never who is alive: a peer that crashed stays in others' caches for hours.
2. python-zeroconf works in threads of its own. The only way from there into trio is a channel with room for `MAX_PENDING`
   findings; what does not fit is dropped.
3. It listens on loopback and on every interface that takes multicast, so two peers on one machine need no network.
4. Ending says goodbye, for at most `GOODBYE_TIMEOUT` seconds.
5. Whoever is announced is told of again every `AGAIN` seconds, at most the latest `MAX_ANNOUNCED`: zeroconf tells of each once,
   and a peer may be out of reach for longer than the rest of the program remembers it.
"""

from __future__ import annotations

import logging
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from mesh.discovery.announcement import Found, decode, encode
from mesh.errors import Unavailable
from mesh.interfaces import Interface, interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.identity import PeerId

__all__ = ["Found", "Mdns"]

SERVICE = "_p2p._udp.local."
MAX_PENDING = 256
MAX_ANNOUNCED = 256
AGAIN = 60.0
GOODBYE_TIMEOUT = 1.0

_GROUP = "224.0.0.251"
_PORT = 4001  # of the SRV record, which nobody reads: addresses stand in the TXT record
_ASK_MILLISECONDS = 1000

_log = logging.getLogger(__name__)


class Mdns:
    """Announces one peer, and tells of others of its mesh."""

    def __init__(self, *, peer_id: PeerId, mesh: str, role: str, addresses: Sequence[str]) -> None:
        """`addresses`: those that the transport really listens on. Raises Misconfigured when the mesh name is too long."""
        self.interfaces: list[str] = []
        """What it listens on, for people: `eth0 192.168.1.5`. Empty until `run` has started."""
        self.heard_itself = not addresses
        """Our own announcement came back: multicast works on this machine. True without addresses: nothing can come back."""
        self._peer_id = peer_id
        self._announced: dict[str, Found] = {}
        self._text = encode(Found(peer_id, list(addresses), mesh, role))

    async def run(self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and browse until cancelled; `found` is called for every peer heard of, of whatever mesh, perhaps repeatedly.

        `started()` comes when it listens, before anything is announced. Raises Unavailable when no interface takes multicast.
        """
        usable = [interface for interface in interfaces() if _takes_multicast(interface)]
        if not usable:
            raise Unavailable(
                "mDNS finds no network interface that takes multicast; use --bootstrap, or --no-mdns", code="no_mdns"
            )
        zeroconf = await _open(usable)
        self.interfaces = [f"{interface.name} {interface.host}" for interface in usable]
        sender, receiver = trio.open_memory_channel[Found](MAX_PENDING)
        try:
            listener = _Listener(trio.lowlevel.current_trio_token(), sender, self._announced)
            await trio.to_thread.run_sync(lambda: ServiceBrowser(zeroconf, SERVICE, listener=listener))
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, zeroconf, usable)
                nursery.start_soon(self._tell_again, found)
                async for finding in receiver:
                    self._tell(finding, found)
        finally:
            receiver.close()
            with trio.move_on_after(GOODBYE_TIMEOUT, shield=True):
                await trio.to_thread.run_sync(_close, zeroconf, abandon_on_cancel=True)

    def _tell(self, finding: Found, found: Callable[[Found], None]) -> None:
        if finding.peer_id == self._peer_id:
            self.heard_itself = True
        else:
            found(finding)

    async def _tell_again(self, found: Callable[[Found], None]) -> None:
        while True:
            await trio.sleep(AGAIN)
            for finding in list(self._announced.values()):
                self._tell(finding, found)

    async def _announce(self, zeroconf: Zeroconf, usable: list[Interface]) -> None:
        # libp2p asks for a random name: it says nothing about the peer, and needs no search for others of the same name.
        name = secrets.token_hex(20)
        service = ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=_PORT,
            properties=self._text,
            server=f"{name}.local.",
            parsed_addresses=[interface.host for interface in usable],
        )
        register = lambda: zeroconf.register_service(service, cooperating_responders=True)  # noqa: E731
        try:
            await trio.to_thread.run_sync(register, abandon_on_cancel=True)
        except (ZeroconfError, OSError) as error:
            _log.warning("this peer could not be announced by mDNS: %s", error)


class _Listener(ServiceListener):  # type: ignore[misc]  # untyped base
    """Called by zeroconf in its browser's thread, where it may wait for an answer."""

    def __init__(
        self, token: trio.lowlevel.TrioToken, sender: trio.MemorySendChannel[Found], announced: dict[str, Found]
    ) -> None:
        """`announced` is kept by service name, in trio's thread."""
        self._token = token
        self._sender = sender
        self._announced = announced

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        try:
            service = ServiceInfo(type_, name)
            service.load_from_cache(zc)
            if not service.text:
                service.request(zc, _ASK_MILLISECONDS)
        except (ZeroconfError, OSError, RuntimeError) as error:
            _log.debug("an mDNS service is unreadable: %r", error)
            return
        finding = decode(service.text or b"")
        if finding is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._hand_over, name, finding)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002 - zeroconf's signature
        """It is not told of again. Whether a peer is there, its link says."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(lambda: self._announced.pop(name, None))

    def _hand_over(self, name: str, finding: Found) -> None:
        self._announced.pop(name, None)
        self._announced[name] = finding
        if len(self._announced) > MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]
        with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._sender.send_nowait(finding)


async def _open(usable: list[Interface]) -> Zeroconf:
    hosts = [interface.host for interface in usable]
    try:
        return await trio.to_thread.run_sync(lambda: Zeroconf(interfaces=hosts, ip_version=IPVersion.V4Only, use_asyncio=False))
    except OSError as error:
        raise Unavailable(
            f"mDNS cannot listen on port 5353: {error.strerror}; use --bootstrap, or --no-mdns", code="no_mdns"
        ) from error


def _close(zeroconf: Zeroconf) -> None:
    # It says goodbye for what is registered, and waits for its threads.
    with suppress(ZeroconfError, OSError, RuntimeError, TimeoutError):
        zeroconf.close()


def _takes_multicast(interface: Interface) -> bool:
    """True when the system lets us join the mDNS group there."""
    if interface.version != 4:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_GROUP) + socket.inet_aton(interface.host)
            )
        except OSError:
            return False
    return True
