"""Trying several addresses of one peer: which, in what order, and what to say when none answers.

1. The next address is tried whenever one failed or `HEAD_START` seconds passed; the first that succeeds ends all others.
2. Every address that was tried, or cannot be, has its reason in the error.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from mesh.errors import MeshError, Unavailable
from mesh.transport.libp2p.addresses import MAX_LENGTH, Address, best_first

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesh.identity import PeerId

DIAL_TIMEOUT = 5.0
"""Seconds for all addresses together."""

HEAD_START = 0.15
"""Seconds that a better address gets before the next one is tried beside it."""

MAX_ADDRESSES = 16
"""Addresses of one peer that are tried; records of strangers may hold any number."""

_MAX_REASON = 200
_MAX_CAUSES = 10


class Abortable(Protocol):
    """What a dial opens: a channel or a bare connection."""

    def abort(self) -> None:
        """End it at once."""


Opened = TypeVar("Opened", bound=Abortable)

if TYPE_CHECKING:
    Attempt = Callable[[Address, Callable[[], None]], Awaitable[Opened]]
    """One address to what is opened; the second argument is called once something takes the connection."""


class Dial(Generic[Opened]):
    """One attempt to reach one peer."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._reasons: dict[str, str] = {}
        parsed = [address for text in addresses if (address := self._parse(text)) is not None]
        self.peer_id: PeerId | None = parsed[0].peer_id if parsed else None
        for address in parsed:
            if address.peer_id != self.peer_id:
                self._reasons[str(address)] = "it names another peer than the first address"
        ordered = best_first(address for address in parsed if address.peer_id == self.peer_id)
        self.addresses = ordered[:MAX_ADDRESSES]
        self._winner: Opened | None = None

    async def run(self, attempt: Attempt[Opened]) -> Opened:
        """What the first attempt that succeeds opened. Blocks at most `DIAL_TIMEOUT` seconds. Raises Unavailable."""
        try:
            with trio.move_on_after(DIAL_TIMEOUT):
                await self._race(attempt)
        except BaseException:
            if self._winner is not None:
                self._winner.abort()
            raise
        if self._winner is None:
            raise Unavailable(self._message(), code="unreachable")
        return self._winner

    async def _race(self, attempt: Attempt[Opened]) -> None:
        async with trio.open_nursery() as nursery:
            for address in self.addresses:
                failed = trio.Event()
                nursery.start_soon(self._try, attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(HEAD_START):
                    await failed.wait()

    async def _try(
        self,
        attempt: Attempt[Opened],
        address: Address,
        failed: trio.Event,
        others: trio.CancelScope,
    ) -> None:
        def connected() -> None:
            self._reasons[str(address)] = f"it takes the connection, then says nothing for {DIAL_TIMEOUT:.0f} s"

        self._reasons[str(address)] = f"no answer within {DIAL_TIMEOUT:.0f} s"
        try:
            opened = await attempt(address, connected)
        except Exception as error:  # noqa: BLE001 - handshakes with strangers raise whatever their libraries raise
            self._reasons[str(address)] = reason_of(error)
            failed.set()
            return
        if self._winner is None:
            self._winner = opened
            others.cancel()
        else:
            opened.abort()

    def _parse(self, text: str) -> Address | None:
        try:
            address = Address.parse(text)
        except ValueError as error:
            self._reasons[text[:MAX_LENGTH]] = str(error)
            return None
        if address.peer_id is None:
            self._reasons[text] = "it does not end in /p2p/ and a peer id"
            return None
        return address

    def _message(self) -> str:
        if not self._reasons:
            return "cannot reach the peer: no address of it is known"
        reasons = "; ".join(f"{address}: {reason}" for address, reason in list(self._reasons.items())[:MAX_ADDRESSES])
        return f"cannot reach the peer at any address: {reasons}"


def reason_of(error: BaseException) -> str:
    """Why an attempt came to nothing, in a few words."""
    chain = _causes(error)
    for link in reversed(chain):
        match link:
            case PeerIDMismatchesPubkey():
                return "another peer answers there; its identity changed, or the address belongs to somebody else now"
            case ProtocolNotSupportedError():
                return "it is a libp2p peer, but not of this mesh program"
            case MeshError():
                return link.message[:_MAX_REASON]
            case socket.gaierror():
                return "no address is known for this name"
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
    if isinstance(chain[-1], (BaseLibp2pError, trio.TooSlowError)):
        return "it does not answer as a libp2p peer"
    return (str(chain[-1]) or type(chain[-1]).__name__)[:_MAX_REASON]


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what lies behind it, the outermost first."""
    chain = [error]
    while len(chain) < _MAX_CAUSES:
        last = chain[-1]
        cause = last.exceptions[0] if isinstance(last, BaseExceptionGroup) else last.__cause__
        if cause is None:
            break
        chain.append(cause)
    return chain
