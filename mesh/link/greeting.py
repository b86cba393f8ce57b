"""What is said before a link lives: one message at a time, with nothing lost of what came along with it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mesh.errors import Unavailable
from mesh.framing import FrameReader, frame
from mesh.link.codec import decode_one, encode, join, parts

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from mesh.link.codec import Received
    from mesh.messages.link import LinkMessage
    from mesh.transport.base import Channel

READ_SIZE = 64 * 1024


class Greeting:
    """`frames` is the link's own reader: an incomplete frame stays in it. `heard` is called for every piece that arrives."""

    def __init__(self, channel: Channel, frames: FrameReader, heard: Callable[[], None]) -> None:
        self._channel = channel
        self._frames = frames
        self._heard = heard
        self._unread: deque[msgspec.Raw] = deque()

    async def say(self, message: LinkMessage) -> None:
        """Write one message."""
        await self._channel.send_all(frame(join([encode(message)])))

    async def hear(self) -> Received:
        """The next message. Raises Unavailable when the other side ended the channel, FrameError when it broke the framing."""
        while not self._unread:
            data = await self._channel.receive_some(READ_SIZE)
            if not data:
                raise Unavailable(f"{self._channel.peer_id} closed the connection before it said hello", code="no_hello")
            self._heard()
            for body in self._frames.feed(bytes(data)):
                self._unread += parts(body)
        return decode_one(self._unread.popleft())

    def rest(self) -> list[msgspec.Raw]:
        """What came and was not heard yet."""
        rest = list(self._unread)
        self._unread.clear()
        return rest
