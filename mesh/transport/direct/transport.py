"""Listens for and dials direct connections: TLS 1.3 over plain TCP.

1. Both peer ids are proven: the server's by the certificate's fingerprint, which came over a link that proves it; the client's by
   a ticket, which went to it over that link, and its signature over ticket and fingerprint. So a stolen ticket opens nothing.
2. A client compares the fingerprint before it sends anything of its own.
3. What strangers can take is bounded: `MAX_HANDSHAKES` unproven connections, each for at most `HANDSHAKE_LIMIT` seconds. Who
   comes without a good ticket is cut off without a word.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.errors import Denied, MeshError, Unavailable
from mesh.identity import verify
from mesh.messages.link import UpgradeOffer
from mesh.transport.direct.certificate import Certificate, client_context, fingerprint_of
from mesh.transport.direct.channel import DirectChannel
from mesh.transport.direct.tickets import TICKET_SIZE, Tickets
from mesh.transport.direct.tls import TlsStream
from mesh.transport.libp2p.addresses import Address, reachable_hosts
from mesh.transport.libp2p.listeners import bind, listen_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.identity import Identity, PeerId
    from mesh.transport.base import Handler

MAX_HANDSHAKES = 64
HANDSHAKE_LIMIT = 5.0
CONNECT_LIMIT = 3.0
"""Seconds that one address may take, handshake included."""
DIAL_LIMIT = 9.0
"""Seconds for all addresses: less than a ticket lives."""
MAX_ADDRESSES = 16

_PURPOSE = b"infermesh-direct-link"
_SIGNATURE_SIZE = 64
_WELCOME = b"\x01"
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, MeshError)

logger = logging.getLogger(__name__)


class DirectTransport:
    """A peer's direct listeners, one per host that it listens on, and its way to those of others."""

    def __init__(self, identity: Identity, listen: Sequence[str]) -> None:
        """`listen`: the multiaddrs of the libp2p transport; their hosts count, each gets a free port. Raises Misconfigured."""
        self._identity = identity
        hosts = {address.host: address for address in map(listen_address, listen)}
        self._listen = [replace(address, port=0, websocket=False) for address in hosts.values()]
        self._certificate = Certificate()
        self._client = client_context()
        self._tickets = Tickets()
        self._bound: list[Address] = []
        self._handshakes = 0

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; `started()` once all listeners are bound. Raises Misconfigured when one cannot be."""
        listeners: list[trio.SocketListener] = []
        try:
            for address, listener in map(bind, self._listen):
                self._bound.append(address)
                listeners.append(listener)
            accept = partial(self._accept, handler)
            async with trio.open_nursery() as nursery:
                if listeners:  # a client has none
                    nursery.start_soon(partial(trio.serve_listeners, accept, listeners, handler_nursery=nursery))
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._bound = []
            for listener in listeners:
                listener.socket.close()

    @property
    def addresses(self) -> list[str]:
        """Where the listeners are reached, loopback first. Empty until `run` has started."""
        found = [replace(address, host=host) for address in self._bound for host in reachable_hosts(address.host)]
        return [str(address) for address in sorted(found, key=lambda address: not address.is_loopback)][:MAX_ADDRESSES]

    def offer(self, peer_id: PeerId) -> UpgradeOffer:
        """What lets `peer_id` in, once; without addresses when there is no room. To be sent over a link to it, nowhere else."""
        ticket = self._tickets.issue(peer_id) if self._bound else None
        return UpgradeOffer(self.addresses, self._certificate.fingerprint, ticket) if ticket else UpgradeOffer()

    async def dial(self, peer_id: PeerId, offer: UpgradeOffer, *, seen_at: str) -> DirectChannel:
        """A channel to the peer that made the offer over its link, whose other end is `seen_at`.

        Blocks for at most DIAL_LIMIT. Raises Unavailable, naming each address and why it failed.
        """
        failures: list[str] = []
        with trio.move_on_after(DIAL_LIMIT):
            for address in _best_first(offer.addresses, seen_at):
                try:
                    return await self._connect(address, peer_id, offer)
                except _BROKEN as error:
                    failures.append(f"{address}: {_why(error)}")
        raise Unavailable("no direct address answered: " + ("; ".join(failures) or "none was offered"), code="no_direct")

    async def _connect(self, address: Address, peer_id: PeerId, offer: UpgradeOffer) -> DirectChannel:
        with trio.fail_after(CONNECT_LIMIT):
            tls = TlsStream(await trio.open_tcp_stream(address.host, address.port), self._client)
            try:
                await tls.do_handshake()
                _check_certificate(tls.getpeercert(), offer.fingerprint)
                await self._present(tls, offer)
                return DirectChannel(tls, peer_id)
            except BaseException:
                tls.close()
                raise

    async def _present(self, tls: TlsStream, offer: UpgradeOffer) -> None:
        await tls.send_all(offer.ticket + self._identity.sign(_PURPOSE, offer.ticket + offer.fingerprint))
        if await tls.receive_some(1) != _WELCOME:
            raise Denied("it refused the ticket", code="ticket_refused", status=403)

    async def _accept(self, handler: Handler, tcp: trio.SocketStream) -> None:
        """Serve one inbound connection until it ends. Whatever goes wrong with it ends it alone."""
        if self._handshakes >= MAX_HANDSHAKES:
            tcp.socket.close()
            return
        self._handshakes += 1
        try:
            channel = await self._prove(tcp)
        except _BROKEN as error:
            logger.debug("an inbound direct connection failed: %s", _why(error))
            return
        finally:
            self._handshakes -= 1
        await _handle(handler, channel)

    async def _prove(self, tcp: trio.SocketStream) -> DirectChannel:
        tls = TlsStream(tcp, self._certificate.context, server_side=True)
        try:
            with trio.fail_after(HANDSHAKE_LIMIT):
                await tls.do_handshake()
                peer_id = self._redeem(await _exactly(tls, TICKET_SIZE + _SIGNATURE_SIZE))
                await tls.send_all(_WELCOME)
                return DirectChannel(tls, peer_id)
        except BaseException:
            tls.close()
            raise

    def _redeem(self, preface: bytes) -> PeerId:
        ticket, signature = preface[:TICKET_SIZE], preface[TICKET_SIZE:]
        peer_id = self._tickets.redeem(ticket)
        if peer_id is None or not verify(peer_id, _PURPOSE, ticket + self._certificate.fingerprint, signature):
            raise Denied("the ticket is unknown, used, expired or of another peer", code="ticket_refused", status=403)
        return peer_id


def _check_certificate(certificate: bytes, fingerprint: bytes) -> None:
    if not hmac.compare_digest(fingerprint_of(certificate), fingerprint):
        raise Denied("it shows another certificate than the link said", code="wrong_certificate", status=403)


async def _handle(handler: Handler, channel: DirectChannel) -> None:
    try:
        await handler(channel)
        await channel.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        logger.debug("a channel from %s ended under its handler: %s", channel.peer_id, error)
    except Exception:
        logger.exception("the handler of a channel from %s failed", channel.peer_id)
    finally:
        channel.abort()


async def _exactly(tls: TlsStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = await tls.receive_some(size - len(received))
        if not data:
            raise trio.BrokenResourceError("it ended before it showed a ticket")
        received += data
    return received


def _best_first(addresses: Sequence[str], seen_at: str) -> list[Address]:
    """The host that the link reaches first; this machine's own only when the link stays on it. Anything odd is left out."""
    parsed = [address for address in map(_parse, addresses[:MAX_ADDRESSES]) if address is not None]
    seen = _parse(seen_at)
    here = seen is None or seen.is_loopback
    usable = [address for address in parsed if here or not address.is_loopback]
    return sorted(usable, key=lambda address: seen is None or address.host != seen.host)


def _parse(text: str) -> Address | None:
    try:
        address = Address.parse(text)
    except ValueError:
        return None
    return address if address.kind in ("ip4", "ip6") and address.relay is None else None


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "it did not answer in time"
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        # Of `open_tcp_stream`: one attempt per address of a host, and here a host is one address.
        cause = cause.exceptions[0]
    return str(cause) or type(cause).__name__
