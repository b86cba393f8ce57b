"""One link: hello, then one reader and one writer until the channel dies.

1. Nothing but hello (or `Refused`) is said before both hellos are checked; each side has `HELLO_LIMIT` seconds. In a private mesh
   the proofs of `proof.py` come before.
2. A hello's record is signed by the peer that the channel proves.
3. Whatever the other side sends, at worst its own link ends; `reason` says why.
4. When `run` has returned or raised, the channel is closed and every request in both directions has ended.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.errors import BadRequest, Conflict, Denied, MeshError, Unavailable
from mesh.framing import FrameError, FrameReader, frame
from mesh.link.codec import Malformed, UnknownKind, decode, encode, join
from mesh.link.greeting import Greeting
from mesh.link.opened import OpenedRequests
from mesh.link.proof import Credentials, Prover, private_mesh
from mesh.link.pulse import INTERVAL, SILENCE, Pulse
from mesh.link.served import ServedRequests
from mesh.link.writer import LinkWriter
from mesh.messages.link import (
    Cancel,
    Drained,
    Emit,
    Heartbeat,
    Hello,
    Keys,
    Leave,
    LinkMessage,
    ModelLoad,
    Open,
    PathControl,
    Prove,
    Records,
    Refused,
    Unknown,
    Upgrade,
    UpgradeOffer,
)
from mesh.messages.reachability import DialBack, DialedBack
from mesh.messages.relay import Incoming, Release, Reserve, Reserved
from mesh.record import RecordError, open_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mesh.identity import PeerId
    from mesh.link.codec import Received
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import NodeRecord
    from mesh.service import Emit as EmitEvent
    from mesh.service import InferenceService
    from mesh.transport.base import Carrier, Channel

HELLO_LIMIT = 5.0
CLOSE_LIMIT = 2.0
READ_SIZE = 64 * 1024
MAX_UNKNOWN_KINDS = 64
MAX_MODELS = 1_000
CONFLICTS = frozenset({"duplicate", "replaced", "same_identity"})
"""Codes of `Refused` that mean a Conflict; every other one is a Denied."""
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

logger = logging.getLogger(__name__)

Control = Heartbeat | Records | Leave | Keys | Upgrade | UpgradeOffer | Drained | PathControl


async def _ignore(_link: Link, _message: Control) -> None:
    """Hear nothing."""


@dataclass(frozen=True, kw_only=True)
class LinkSide:
    """What our side brings to a link. The callables are asked when it matters, so they always tell the present."""

    hello: Callable[[], Hello]
    credentials: Credentials | None = None  # of a private mesh
    service: InferenceService | None = None
    load: Callable[[], Mapping[str, ModelLoad]] = dict
    admit: Callable[[Link], None] = lambda _link: None
    """Called once the other side's hello is checked. A MeshError that it raises refuses the link, with its code and message."""
    up: Callable[[Link], None] = lambda _link: None
    """Called once both sides are in, before anything else is read."""
    heard: Callable[[Link, Control], Awaitable[None]] = _ignore
    """Called for each control message, after the link took it in. The reader waits for it."""


class Link:
    """Both halves of a link. It is an `InferenceService` that asks the other side."""

    hello: Hello
    record: NodeRecord
    """Of the other side, as its hello said it; the registry holds the newest. Both are there once `run` has started."""

    def __init__(self, channel: Channel, side: LinkSide, *, dialled: bool) -> None:
        self.peer_id: PeerId = channel.peer_id
        self.dialled = dialled
        self.load: dict[str, ModelLoad] = {}
        self.leaving = False
        self.closed = trio.Event()
        self.reason = ""
        self.known_keys: frozenset[str] = frozenset()
        """Ids of the network keys that the other side said it has."""
        self.remote_address = channel.remote_address
        self._channel = channel
        self._side = side
        self._pulse = Pulse()
        self._writer = LinkWriter(channel, self._heartbeat)
        self._opened = OpenedRequests(self._writer)
        self._served: ServedRequests | None = None
        self._frames = FrameReader()
        self._scope = trio.CancelScope()
        self._ended_cleanly = False
        self._refusal: MeshError | None = None
        self._unknown: set[str] = set()

    def __repr__(self) -> str:
        return f"<Link {'to' if self.dialled else 'from'} {self.peer_id}>"

    @property
    def rtt(self) -> float | None:
        """Seconds, smoothed; None until the first heartbeat came back."""
        return self._pulse.rtt

    @property
    def carrier(self) -> Carrier:
        """What its bytes travel by: one for the whole life of a link."""
        return self._channel.carrier

    @property
    def via(self) -> PeerId | None:
        """The relay that its bytes go over; None where there is none."""
        return self._channel.via

    @property
    def in_flight(self) -> int:
        """Requests that we opened and that have not ended."""
        return len(self._opened)

    @property
    def serving(self) -> int:
        """Requests of the other side that our service still works on."""
        return len(self._served) if self._served else 0

    async def run(self, *, task_status: trio.TaskStatus[Link] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until the channel dies; `started(self)` after both hellos.

        Raises Denied or Conflict when either side refuses the other, Unavailable when there is no hello within HELLO_LIMIT.
        """
        try:
            rest = await self._greet()
            await self._live(rest, task_status)
        finally:
            self._abort()
            self._writer.close()
            self._opened.lose(f"the link to {self.peer_id} was lost: {self.reason or 'our side stopped'}")
            self.closed.set()
        if self._refusal is not None:
            raise self._refusal

    async def infer(self, request: InferenceRequest, emit: EmitEvent) -> None:
        """Ask the other side. Raises its error, Unavailable (codes `link_lost`, `leaving`) or Busy at 256 in flight."""
        if self.leaving:
            raise Unavailable(f"{self.peer_id} is leaving the mesh; ask another node", code="leaving")
        await self._opened.infer(request, emit)

    def send(self, message: LinkMessage) -> None:
        """Queue a control message; never blocks. Dropped when the link is closed. Raises FrameError over 4 MiB."""
        self._writer.put(encode(message))

    def beat(self) -> None:
        """Send a heartbeat at once: our load changed in a way that the other side should know."""
        self._writer.beat()

    async def flush(self) -> None:
        """Wait until everything queued is written, or the link ended."""
        await self._writer.flush()

    async def idle(self) -> None:
        """Wait until no request runs on it in either direction, or it ended."""
        while (self.in_flight or self.serving) and not self.closed.is_set():
            with trio.move_on_after(INTERVAL):
                await self.closed.wait()

    async def close(self, reason: str) -> None:
        """Say Leave, write what is pending, end. Blocks for at most CLOSE_LIMIT; requests under way are lost."""
        await self._close(Leave(reason), reason)

    async def refuse(self, code: str, message: str) -> None:
        """Say why this link will not go on, and end it as `close` does."""
        await self._close(Refused(code, message), message)

    async def _close(self, farewell: Leave | Refused, reason: str) -> None:
        self.reason = self.reason or reason
        self.send(farewell)
        self._writer.finish()
        with trio.move_on_after(CLOSE_LIMIT):
            await self.closed.wait()
        self._end(reason)

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._abort()
        self._scope.cancel()

    def _break(self) -> None:
        self._end("the other side does not read" if self._writer.stuck else "the connection broke")

    def _abort(self) -> None:
        # An abort after a clean end could take back what is still on its way.
        if not self._ended_cleanly:
            self._channel.abort()

    # Hello

    async def _greet(self) -> list[Received]:
        with trio.move_on_after(HELLO_LIMIT) as limit:
            first, rest = await self._exchange_hello()
        if limit.cancelled_caught:
            raise Unavailable(f"{self.peer_id} did not say hello within {HELLO_LIMIT:g} s", code="no_hello")
        match first:
            case Hello():
                await self._admit(first)
                return rest
            case Prove():
                raise private_mesh()
            case Refused():
                raise _refusal(first)
            case _:
                raise Unavailable(f"{self.peer_id} spoke before it said hello", code="no_hello")

    async def _exchange_hello(self) -> tuple[object, list[Received]]:
        greeting = Greeting(self._channel, self._frames, self._pulse.heard)
        try:
            instead = await self._prove(greeting)
            if instead is not None:
                return instead, []
            await greeting.say(self._side.hello())
            return await greeting.hear(), greeting.rest()
        except FrameError as error:
            raise Unavailable(f"{self.peer_id} does not speak this protocol: {error}", code="no_hello") from error
        except _LOST as error:
            raise Unavailable(f"{self.peer_id} closed the connection before it said hello", code="no_hello") from error

    async def _prove(self, greeting: Greeting) -> Received | None:
        """What the other side said instead of its proof, if anything."""
        if self._side.credentials is None:
            return None
        prover = Prover(self._side.credentials, self.peer_id, dialled=self.dialled)
        try:
            return await prover.run(greeting)
        except Denied as error:
            await refuse(self._channel, error.code, error.message)
            raise
        finally:
            self.known_keys = prover.theirs

    async def _admit(self, hello: Hello) -> None:
        try:
            self.hello, self.record = hello, self._check(hello)
            self._side.admit(self)
        except MeshError as error:
            await refuse(self._channel, error.code, error.message)
            raise

    def _check(self, hello: Hello) -> NodeRecord:
        ours = self._side.hello().mesh
        if hello.mesh != ours:
            raise Denied(
                f"one peer is in mesh {ours!r} and the other in {hello.mesh[:64]!r}; start both with the same --mesh",
                code="other_mesh",
                status=403,
            )
        try:
            record = open_record(hello.record)
        except RecordError as error:
            raise Denied(f"the record in the hello is bad: {error}", code="bad_record", status=403) from error
        if record.peer_id != self.peer_id or record.mesh != hello.mesh:
            raise Denied("the record in the hello is of another peer or mesh", code="bad_record", status=403)
        return record

    # Life

    async def _live(self, rest: list[Received], task_status: trio.TaskStatus[Link]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._served = ServedRequests(self._writer, self._side.service, self._side.load, nursery)
                self._writer.beat()
                self._side.up(self)
                task_status.started(self)
                nursery.start_soon(self._write)
                nursery.start_soon(self._read, rest, self._served)
                nursery.start_soon(self._beat)
                await self._pulse.until_silent()
                self._end(f"it was silent for {SILENCE:g} s")

    async def _write(self) -> None:
        try:
            await self._writer.run()
            with trio.move_on_after(CLOSE_LIMIT):
                await self._channel.aclose()
                self._ended_cleanly = True
            self._end("our side closed it")
        except _LOST:
            if not self._writer.stuck:
                # What the other side said before it closed may still be unread: the reader finds the end by itself.
                await trio.sleep(CLOSE_LIMIT)
            self._break()

    async def _beat(self) -> None:
        while True:
            await trio.sleep(INTERVAL)
            self._writer.beat()

    def _heartbeat(self) -> bytes:
        return encode(Heartbeat(trio.current_time(), self._pulse.echo(), dict(self._side.load())))

    async def _read(self, rest: list[Received], served: ServedRequests) -> None:
        try:
            await self._take_all(rest, served)
            while data := await self._channel.receive_some(READ_SIZE):
                self._pulse.heard()
                for body in self._frames.feed(bytes(data)):
                    await self._take_all(decode(body), served)
            self._end("the other side closed it")
        except FrameError as error:
            logger.warning("link to %s ended: it broke the protocol: %s", self.peer_id, error)
            self._end(f"it broke the protocol: {error}")
        except trio.ClosedResourceError:
            # We are closing it, and whoever does ends the link: an abort from here would take back the last words.
            return
        except trio.BrokenResourceError:
            self._break()
        except MeshError as refusal:
            self._refusal = refusal
            self._end(refusal.message)
        except Exception:
            logger.exception("link to %s ended: our side failed on one of its messages", self.peer_id)
            self._end("our side failed on one of its messages")

    async def _take_all(self, messages: list[Received], served: ServedRequests) -> None:
        for message in messages:
            # The first case is one token of one request: no call, no await that it does not need.
            if isinstance(message, Emit):
                self._opened.take(message.stream, message.event)
            else:
                await self._take(message, served)

    async def _take(self, message: Received, served: ServedRequests) -> None:
        match message:
            case Open():
                served.open(message)
            case Cancel():
                served.cancel(message.stream)
            case Heartbeat() | Records() | Leave() | Keys() | Upgrade() | UpgradeOffer() | Drained():
                await self._hear(message)
            case DialBack() | DialedBack() | Reserve() | Reserved() | Release() | Incoming():
                await self._hear(message)
            case Malformed(opened=True):
                served.refuse(message.stream, BadRequest(f"the request has the wrong shape: {message.why}"))
            case Malformed():
                self._opened.fail(message.stream, message.why)
            case UnknownKind():
                self._answer_unknown(message.kind)
            case Unknown():
                logger.debug("%s does not know messages of kind %.64r", self.peer_id, message.kind)
            case Refused():
                raise _refusal(message)
            case _:
                raise FrameError("a second hello")

    async def _hear(self, message: Control) -> None:
        match message:
            case Heartbeat():
                if len(message.models) > MAX_MODELS:
                    raise FrameError(f"a heartbeat with more than {MAX_MODELS} models")
                self.load = message.models
                if self._pulse.beaten(message):
                    self._writer.beat()
            case Leave():
                self.leaving = True
            case _:
                pass
        await self._side.heard(self, message)

    def _answer_unknown(self, kind: str) -> None:
        if kind not in self._unknown and len(self._unknown) < MAX_UNKNOWN_KINDS:
            self._unknown.add(kind)
            self.send(Unknown(kind))


async def refuse(channel: Channel, code: str, message: str) -> None:
    """Tell a peer why it gets no link, and close its channel. Blocks for at most a second; errors do not matter here."""
    with trio.move_on_after(1):
        try:
            await channel.send_all(frame(join([encode(Refused(code, message))])))
            # Closing a socket with unread bytes resets it, and the reset may overtake the refusal: let the other side end it.
            while await channel.receive_some(READ_SIZE):
                pass
        except _LOST:
            pass
    channel.abort()


def _refusal(message: Refused) -> MeshError:
    code = message.code[:64]
    # The text ends up in our operator's log: one line, bounded.
    text = " ".join(message.message.split())[:300]
    if code in CONFLICTS:
        return Conflict(f"the other side refused the link: {text}", code=code)
    return Denied(f"the other side refused the link: {text}", code=code, status=403)
