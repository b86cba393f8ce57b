"""Joins others: who cannot be dialled keeps a reservation here, and whoever asks for it gets a circuit to it.

1. Both ends are linked with us, so both are of our mesh and pass its rules; so must the addresses that their streams come from.
2. A reservation lives as long as the link of the process that made it.
3. The one who is asked for opens its half itself, under a number that only it was told, and only it can use.
4. Everything has a bound, and who meets one is told which.
5. What goes through is ciphertext between the two ends.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.errors import Busy, Denied, MeshError, NotFound, Unavailable
from mesh.messages.relay import Fetch, Incoming, Join, Joined, Reserved
from mesh.relay.circuit import Circuit
from mesh.relay.ledger import Ledger
from mesh.relay.wire import read, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.relay.bounds import RelayBounds
    from mesh.transport.base import Channel

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Setup:
    """A circuit that waits for its other half."""

    asker: PeerId
    target: PeerId
    other: Channel | None = None
    fetched: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Relay:
    """See the head of this file. `objection` says why a stream's other end may not be here, `willing` whether we relay at all."""

    def __init__(
        self,
        link_of: Callable[[PeerId], Link | None],
        objection: Callable[[Channel], MeshError | None],
        willing: Callable[[], bool],
        bounds: RelayBounds,
    ) -> None:
        self._link_of = link_of
        self._objection = objection
        self._willing = willing
        self._bounds = bounds
        self._ledger = Ledger(bounds.total, bounds.window)
        self._reserved: dict[PeerId, str] = {}
        self._setups: dict[bytes, _Setup] = {}
        self.circuits: set[Circuit] = set()

    @property
    def reservations(self) -> list[PeerId]:
        """Who is reached over us."""
        return [peer_id for peer_id in self._reserved if self._holds(peer_id)]

    def reserve(self, link: Link) -> Reserved:
        """Let a linked peer be reached over us, or say why not."""
        if not self._willing():
            return Reserved("relay_off", "it relays for nobody")
        if link.via is not None:
            return Reserved("relay_chain", "it is itself reached over a relay")
        if link.peer_id not in self._reserved and len(self.reservations) >= self._bounds.reservations:
            return Reserved("relay_full", f"it is the relay of {self._bounds.reservations} peers already")
        self._reserved[link.peer_id] = link.hello.instance
        return Reserved()

    def release(self, peer_id: PeerId) -> None:
        """A peer needs its reservation no more. What is joined stays."""
        self._reserved.pop(peer_id, None)

    def gone(self, peer_id: PeerId) -> None:
        """A link ended: the reservation goes with the last one of its process."""
        if not self._holds(peer_id):
            self._reserved.pop(peer_id, None)

    async def answer(self, channel: Channel) -> None:
        """Serve one stream until it ends. Never raises for what the other end does."""
        try:
            await self._answer(channel)
        except MeshError as error:
            logger.info("no circuit for %s: %s", channel.peer_id, error.message)
            try:
                await write(channel, Joined(error.code, error.message[:300]))
            except MeshError:
                return

    async def _answer(self, channel: Channel) -> None:
        if (objection := self._objection(channel)) is not None:
            raise objection
        if self._link_of(channel.peer_id) is None:
            raise Denied("this relay is for peers that are linked with it", code="not_linked", status=403)
        match await read(channel):
            case Join(peer_id=target):
                await self._join(channel, target)
            case Fetch(circuit=number):
                await self._fetch(channel, number)
            case _:
                raise Unavailable("that is no question", code="relay_failed")

    async def _join(self, channel: Channel, target: str) -> None:
        setup = _Setup(channel.peer_id, self._admit(channel.peer_id, target))
        number = secrets.token_bytes(16)
        self._setups[number] = setup
        try:
            other = await self._half_of(setup, number)
            await write(other, Joined())
            await write(channel, Joined())
            del self._setups[number]
            await self._run(Circuit(channel, other, self._bounds, self._ledger))
        finally:
            self._setups.pop(number, None)
            setup.over.set()

    def _admit(self, asker: PeerId, target: str) -> PeerId:
        """The peer to be reached. Raises for each bound that holds."""
        held = next((peer_id for peer_id in self._reserved if peer_id == target and self._holds(peer_id)), None)
        if not self._willing():
            raise Denied("this peer relays for nobody", code="relay_off", status=403)
        if held is None or held == asker:
            raise NotFound("that peer has no reservation with this relay", code="no_reservation")
        ends = [circuit.ends for circuit in self.circuits] + [(setup.asker, setup.target) for setup in self._setups.values()]
        if len(ends) >= self._bounds.circuits:
            raise Busy(f"this relay carries {self._bounds.circuits} circuits already", code="relay_full")
        for peer_id in (asker, held):
            if sum(peer_id in pair for pair in ends) >= self._bounds.circuits_per_peer:
                raise Busy(f"{peer_id} has {self._bounds.circuits_per_peer} circuits on this relay already", code="relay_full")
        if wait := self._ledger.wait(asker, held):
            text = f"the two used up their {self._bounds.total} bytes on this relay; again in {wait:.0f} s"
            raise Busy(text, code="relay_used_up", retry_after=wait)
        return held

    async def _half_of(self, setup: _Setup, number: bytes) -> Channel:
        link = self._link_of(setup.target)
        if link is not None:
            link.send(Incoming(number, setup.asker))
            with trio.move_on_after(self._bounds.setup):
                await setup.fetched.wait()
        if setup.other is None:
            raise Unavailable("that peer did not open its half of the circuit", code="relay_failed")
        return setup.other

    async def _fetch(self, channel: Channel, number: bytes) -> None:
        setup = self._setups.get(number)
        if setup is None or setup.target != channel.peer_id or setup.other is not None:
            raise NotFound("no circuit of that number waits for this peer", code="no_circuit")
        setup.other = channel
        setup.fetched.set()
        # The stream is closed when this returns.
        await setup.over.wait()

    async def _run(self, circuit: Circuit) -> None:
        self.circuits.add(circuit)
        why = "our side stopped"
        try:
            logger.info("joined %s with %s", *circuit.ends)
            why = await circuit.run()
        finally:
            self.circuits.discard(circuit)
            logger.info("the circuit between %s and %s ended after %d bytes: %s", *circuit.ends, circuit.passed, why)

    def _holds(self, peer_id: PeerId) -> bool:
        link = self._link_of(peer_id)
        return link is not None and link.hello.instance == self._reserved.get(peer_id)
