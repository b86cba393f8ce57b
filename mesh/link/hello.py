"""How two peers meet on a channel: the proofs of a private mesh, then both hellos.

1. Nothing but hello (or `Refused`) is said before both hellos are checked; each side has `HELLO_LIMIT` seconds. In a private mesh
   the proofs of `proof.py` come before.
2. A hello's record is signed by the peer that the channel proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.errors import Denied, Unavailable
from mesh.framing import FrameError
from mesh.link.features import told
from mesh.link.proof import Prover, private_mesh
from mesh.link.refusal import refusal_of, refuse
from mesh.messages.link import Hello, Prove, Refused
from mesh.record import RecordError, open_record

if TYPE_CHECKING:
    from mesh.link.codec import Received
    from mesh.link.greeting import Greeting
    from mesh.link.side import LinkSide
    from mesh.messages.record import NodeRecord
    from mesh.transport.base import Channel

HELLO_LIMIT = 5.0


@dataclass(frozen=True)
class Met:
    """The other side as it showed itself. `known_keys`: ids of the network keys that it said it has."""

    hello: Hello
    record: NodeRecord
    known_keys: frozenset[str]


async def meet(channel: Channel, greeting: Greeting, side: LinkSide, *, dialled: bool) -> Met:
    """Say hello and hear the other side's.

    Raises Denied or Conflict when either side refuses the other, Unavailable when there is no hello within HELLO_LIMIT.
    """
    with trio.move_on_after(HELLO_LIMIT) as limit:
        said, known_keys = await _exchange(channel, greeting, side, dialled=dialled)
    if limit.cancelled_caught:
        raise Unavailable(f"{channel.peer_id} did not say hello within {HELLO_LIMIT:g} s", code="no_hello")
    match said:
        case Hello():
            return Met(said, await _checked(channel, said, side.hello().mesh), known_keys)
        case Prove():
            raise private_mesh()
        case Refused():
            raise refusal_of(said)
        case _:
            raise Unavailable(f"{channel.peer_id} spoke before it said hello", code="no_hello")


async def _exchange(channel: Channel, greeting: Greeting, side: LinkSide, *, dialled: bool) -> tuple[Received, frozenset[str]]:
    """What the other side said where its hello is due, and the ids of the keys that it has."""
    known_keys: frozenset[str] = frozenset()
    try:
        if side.credentials is not None:
            prover = Prover(side.credentials, channel.peer_id, dialled=dialled)
            instead = await _prove(channel, greeting, prover)
            known_keys = prover.theirs
            if instead is not None:
                return instead, known_keys
        await greeting.say(told(side.hello(), side.features))
        return await greeting.hear(), known_keys
    except FrameError as error:
        raise Unavailable(f"{channel.peer_id} does not speak this protocol: {error}", code="no_hello") from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise Unavailable(f"{channel.peer_id} closed the connection before it said hello", code="no_hello") from error


async def _prove(channel: Channel, greeting: Greeting, prover: Prover) -> Received | None:
    """What the other side said instead of its proof, if anything."""
    try:
        return await prover.run(greeting)
    except Denied as error:
        await refuse(channel, error.code, error.message)
        raise


async def _checked(channel: Channel, hello: Hello, mesh: str) -> NodeRecord:
    try:
        return _check(channel, hello, mesh)
    except Denied as error:
        await refuse(channel, error.code, error.message)
        raise


def _check(channel: Channel, hello: Hello, mesh: str) -> NodeRecord:
    if hello.mesh != mesh:
        raise Denied(
            f"one peer is in mesh {mesh!r} and the other in {hello.mesh[:64]!r}; start both with the same --mesh",
            code="other_mesh",
            status=403,
        )
    try:
        record = open_record(hello.record)
    except RecordError as error:
        raise Denied(f"the record in the hello is bad: {error}", code="bad_record", status=403) from error
    if record.peer_id != channel.peer_id or record.mesh != hello.mesh:
        raise Denied("the record in the hello is of another peer or mesh", code="bad_record", status=403)
    return record
