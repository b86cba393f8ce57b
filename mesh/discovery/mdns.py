"""Finds peers on the local network by multicast DNS, the way libp2p does: service `_p2p._udp.local.`.

1. It says whom to dial, never who is alive: a peer that crashed stays in others' caches for hours.
2. python-zeroconf works in threads of its own. The only way from there into trio is a channel with room for `MAX_PENDING`
   findings; what does not fit is dropped.
3. It listens on loopback and on every interface that takes multicast, IPv4 and IPv6, so two peers on one machine need no network.
   It looks every `LOOK` seconds: when interfaces came or went it begins anew on those that are there, and asks there who else is.
4. What is announced follows our addresses.
5. Ending, and leaving an interface, says goodbye, for at most `GOODBYE_TIMEOUT` seconds.
6. Whoever is announced is told of again every `AGAIN` seconds, at most the latest `MAX_ANNOUNCED`: zeroconf tells of each once,
   and a peer may be out of reach for longer than the rest of the program remembers it.
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from mesh.discovery.announcement import Found, decode, encode
from mesh.errors import Unavailable
from mesh.interfaces import Interface, interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mesh.identity import PeerId

__all__ = ["Found", "Mdns"]

SERVICE = "_p2p._udp.local."
MAX_PENDING = 256
MAX_ANNOUNCED = 256
AGAIN = 60.0
GOODBYE_TIMEOUT = 1.0
LOOK = 2.0
"""Seconds between two looks at the interfaces and at our addresses."""

_GROUP = "224.0.0.251"
_GROUP6 = "ff02::fb"
_PORT = 4001  # of the SRV record, which nobody reads: addresses stand in the TXT record
_ASK_MILLISECONDS = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Spot:
    """An interface to call on. Its index tells it from one of the same name that is gone."""

    name: str
    host: str
    index: int


class Mdns:
    """Announces one peer, and tells of others of its mesh."""

    def __init__(self, *, peer_id: PeerId, mesh: str, role: str, addresses: Callable[[], Sequence[str]]) -> None:
        """`addresses`: where we can be dialled, at any time. Raises Misconfigured when the mesh name is too long."""
        self.interfaces: list[str] = []
        """What it listens on, for people: `eth0 192.168.1.5`. Empty until `run` has started."""
        self.heard_itself = not addresses()
        """Our own announcement came back: multicast works on this machine. True without addresses: nothing can come back."""
        self._peer_id = peer_id
        self._addresses = addresses
        self._mesh = mesh
        self._role = role
        self._announced: dict[str, Found] = {}
        self._text()

    async def run(self, found: Callable[[Found], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and browse until cancelled; `found` is called for every peer heard of, of whatever mesh, perhaps repeatedly.

        `started()` comes when it listens, before anything is announced. Raises Unavailable when no interface takes multicast.
        """
        sender, receiver = trio.open_memory_channel[Found](MAX_PENDING)
        listener = _Listener(trio.lowlevel.current_trio_token(), sender, self._announced)
        station = await self._open(listener)
        task_status.started()
        with receiver:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._call, station, listener)
                nursery.start_soon(self._tell_again, found)
                async for finding in receiver:
                    self._tell(finding, found)

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

    async def _open(self, listener: _Listener) -> _Station:
        spots = self._spots()
        if not spots:
            raise Unavailable(
                "mDNS finds no network interface that takes multicast; use --bootstrap, or --no-mdns", code="no_mdns"
            )
        station = await _Station.open(spots, listener)
        self.interfaces = [f"{spot.name} {spot.host}" for spot in spots]
        return station

    async def _call(self, station: _Station, listener: _Listener) -> None:
        """Be on `station` for as long as its interfaces are there, then on a new one."""
        while True:
            try:
                await self._stay(station)
            finally:
                await station.close()
            station = await self._move(listener)

    async def _stay(self, station: _Station) -> None:
        """Announce us. Returns when interfaces came or went."""
        said = b""
        while self._spots() == station.spots:
            if (text := self._text()) != said:
                await station.announce(text)
                said = text
            await trio.sleep(LOOK)

    async def _move(self, listener: _Listener) -> _Station:
        while True:
            try:
                station = await self._open(listener)
            except Unavailable as error:
                self.interfaces = []
                _log.debug("%s", error.message)
                await trio.sleep(LOOK)
            else:
                _log.info("mDNS listens on %s now", ", ".join(self.interfaces))
                return station

    def _text(self) -> bytes:
        return encode(Found(self._peer_id, list(self._addresses()), self._mesh, self._role))

    def _spots(self) -> list[_Spot]:
        """Where multicast works now."""
        asked = {address.split("/")[2] for address in self._addresses() if address.startswith("/ip")}
        return list(_spots(interfaces(asked)))


def _spots(found: Sequence[Interface]) -> Iterator[_Spot]:
    # The group of IPv6 is joined by interface: one address of each will do.
    joined: set[str] = set()
    for interface in found:
        if interface.version == 6 and (interface.name in joined or interface.host == "::1"):
            continue
        if not _takes_multicast(interface):
            continue
        if interface.version == 6:
            joined.add(interface.name)
        yield _Spot(interface.name, interface.host, _index(interface))


class _Station:
    """A zeroconf that listens on some interfaces and browses there."""

    def __init__(self, zeroconf: Zeroconf, spots: list[_Spot]) -> None:
        self.spots = spots
        self._zeroconf = zeroconf
        # libp2p asks for a random name: it says nothing about the peer, and needs no search for others of the same name.
        self._name = secrets.token_hex(20)
        self._announced = False

    @classmethod
    async def open(cls, spots: list[_Spot], listener: _Listener) -> _Station:
        """Raises Unavailable."""

        def start() -> Zeroconf:
            zeroconf = Zeroconf(interfaces=[spot.host for spot in spots], use_asyncio=False)
            try:
                ServiceBrowser(zeroconf, SERVICE, listener=listener)
            except BaseException:
                zeroconf.close()
                raise
            return zeroconf

        try:
            return cls(await trio.to_thread.run_sync(start), spots)
        except OSError as error:
            raise Unavailable(
                f"mDNS cannot listen on port 5353: {error.strerror}; use --bootstrap, or --no-mdns", code="no_mdns"
            ) from error
        except (ZeroconfError, RuntimeError) as error:
            raise Unavailable(f"mDNS does not start: {error}; use --bootstrap, or --no-mdns", code="no_mdns") from error

    async def announce(self, text: bytes) -> None:
        """Say this about us from now on."""
        service = ServiceInfo(
            SERVICE,
            f"{self._name}.{SERVICE}",
            port=_PORT,
            properties=text,
            server=f"{self._name}.local.",
            parsed_addresses=[spot.host for spot in self.spots],
        )

        def say() -> None:
            if self._announced:
                self._zeroconf.update_service(service)
            else:
                self._zeroconf.register_service(service, cooperating_responders=True)

        try:
            await trio.to_thread.run_sync(say, abandon_on_cancel=True)
            self._announced = True
        except (ZeroconfError, OSError) as error:
            _log.warning("this peer could not be announced by mDNS: %s", error)

    async def close(self) -> None:
        """Say goodbye for what was announced, and stop."""
        with trio.move_on_after(GOODBYE_TIMEOUT, shield=True):
            await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    def _close(self) -> None:
        # It waits for its threads.
        with suppress(ZeroconfError, OSError, RuntimeError, TimeoutError):
            self._zeroconf.close()


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


def _takes_multicast(interface: Interface) -> bool:
    """True when the system lets us join the mDNS group there. An IPv6 address that is still being checked does not count."""
    try:
        with socket.socket(socket.AF_INET if interface.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            if interface.version == 4:
                group = socket.inet_aton(_GROUP) + socket.inet_aton(interface.host)
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            else:
                group = socket.inet_pton(socket.AF_INET6, _GROUP6) + struct.pack("@I", _index(interface))
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
                probe.bind((interface.host, 0))
    except OSError:
        return False
    return True


def _index(interface: Interface) -> int:
    """The system's number of an interface; 0 when it is just gone."""
    with suppress(OSError):
        return socket.if_nametoindex(interface.name)
    return 0
