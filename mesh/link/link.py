"""One link: hello, then one reader and one writer until the channel dies.

1. Whatever the other side sends, at worst its own link ends; `reason` says why.
2. When `run` has returned or raised, the channel is closed and every request in both directions has ended.
3. What is newer than the first version of the protocol is said only when both sides have its feature.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mesh.errors import BadRequest, MeshError, NotFound, Unavailable
from mesh.framing import FrameError, FrameReader
from mesh.link.codec import Malformed, UnknownKind, decode_one, encode, parts
from mesh.link.features import ATTACH, CREDIT, PIECES, common
from mesh.link.greeting import Greeting
from mesh.link.hello import meet
from mesh.link.opened import OpenedRequests
from mesh.link.pieces import Assembly
from mesh.link.pulse import INTERVAL, SILENCE, Pulse
from mesh.link.refusal import refusal_of, refuse
from mesh.link.served import ServedRequests
from mesh.link.writer import LinkWriter
from mesh.messages.link import (
    Attach,
    Cancel,
    Credit,
    Drained,
    Emit,
    Heartbeat,
    Hello,
    Keys,
    Leave,
    LinkMessage,
    ModelLoad,
    Open,
    Piece,
    Records,
    Refused,
    Unknown,
    Upgrade,
    UpgradeOffer,
)
from mesh.messages.metrics import Measure, Measured
from mesh.messages.reachability import DialBack, DialedBack
from mesh.messages.relay import Incoming, Release, Reserve, Reserved

if TYPE_CHECKING:
    import msgspec

    from mesh.identity import PeerId
    from mesh.link.codec import Received
    from mesh.link.side import Control, LinkSide
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import NodeRecord
    from mesh.service import Emit as EmitEvent
    from mesh.transport.base import Carrier, Channel

CLOSE_LIMIT = 2.0
READ_SIZE = 64 * 1024
MAX_UNKNOWN_KINDS = 64
MAX_MODELS = 1_000
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

logger = logging.getLogger(__name__)


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
        self.features: frozenset[str] = frozenset()
        """What both sides can do beyond the first version; see `features.py`."""
        self.remote_address = channel.remote_address
        self._channel = channel
        self._side = side
        self._pulse = Pulse()
        self._writer = LinkWriter(channel, self._heartbeat)
        self._opened = OpenedRequests(self._writer)
        self._served: ServedRequests | None = None
        self._frames = FrameReader()
        self._assembly = Assembly()
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
            rest = await self._meet()
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

    async def attach(self, wanted: Attach, emit: EmitEvent) -> None:
        """Go on with a request that the other side has. Raises as `infer`, and NotFound(code="stream_not_found")."""
        if ATTACH not in self.features:
            raise NotFound(f"{self.peer_id} keeps no streams; send the request again", code="stream_not_found")
        await self._opened.attach(wanted, emit)

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

    # Life

    async def _meet(self) -> list[msgspec.Raw]:
        """Both hellos. Returns what came after the other side's."""
        greeting = Greeting(self._channel, self._frames, self._pulse.heard)
        met = await meet(self._channel, greeting, self._side, dialled=self.dialled)
        self.hello, self.record, self.known_keys = met.hello, met.record, met.known_keys
        self.features = common(self._side.features, met.hello)
        self._opened.credit = CREDIT in self.features
        self._writer.pieces = PIECES in self.features
        try:
            self._side.admit(self)
        except MeshError as error:
            await refuse(self._channel, error.code, error.message)
            raise
        return greeting.rest()

    async def _live(self, rest: list[msgspec.Raw], task_status: trio.TaskStatus[Link]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                credit = CREDIT in self.features
                self._served = ServedRequests(self._writer, self._side.service, self._side.load, nursery, credit=credit)
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

    async def _read(self, rest: list[msgspec.Raw], served: ServedRequests) -> None:
        try:
            await self._take_all(rest, served)
            while data := await self._channel.receive_some(READ_SIZE):
                self._pulse.heard()
                for body in self._frames.feed(bytes(data)):
                    await self._take_all(parts(body), served)
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

    async def _take_all(self, messages: list[msgspec.Raw], served: ServedRequests) -> None:
        for part in messages:
            message = decode_one(part)
            # The first case is one token of one request: no call, no await that it does not need.
            if isinstance(message, Emit):
                self._opened.take(message.stream, message.event, len(part))
            else:
                await self._take(message, served)

    async def _take_piece(self, piece: Piece, served: ServedRequests) -> None:
        if not self._writer.pieces:
            raise FrameError("a piece from a peer that does not know them")
        whole = self._assembly.add(piece)
        if whole is None:
            return
        match message := decode_one(whole):
            case Emit():
                self._opened.take(message.stream, message.event, len(whole))
            case Piece():
                raise FrameError("a piece made of pieces")
            case _:
                await self._take(message, served)

    async def _take(self, message: Received, served: ServedRequests) -> None:
        match message:
            case Open():
                served.open(message)
            case Attach():
                served.attach(message)
            case Cancel():
                served.cancel(message.stream)
            case Credit():
                served.grant(message)
            case Piece():
                await self._take_piece(message, served)
            case Heartbeat() | Records() | Leave() | Keys() | Upgrade() | UpgradeOffer() | Drained():
                await self._hear(message)
            case DialBack() | DialedBack() | Reserve() | Reserved() | Release() | Incoming() | Measure() | Measured():
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
                raise refusal_of(message)
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
