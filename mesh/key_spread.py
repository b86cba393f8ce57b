"""Keeps the keyrings of linked members equal.

1. A change of our keyring, whatever made it, goes to every link at once; a new link is told what it lacks.
2. What a member tells changes nothing unless a key in it is new, so telling ends.
3. Another program may replace the key file (`mesh rotate-key`): it is looked at every `LOOK` seconds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mesh.errors import Misconfigured
from mesh.messages.link import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.keyring import Keyring
    from mesh.link import Link

LOOK = 1.0

logger = logging.getLogger(__name__)


class KeySpread:
    """`changed` is called after a change. `keyed` is set once there is a key, or at once in an open mesh."""

    def __init__(self, keyring: Keyring | None, links: Callable[[], Iterable[Link]], changed: Callable[[], None]) -> None:
        self.keyed = trio.Event()
        self._keyring = keyring
        self._links = links
        self._changed = changed
        if keyring is not None:
            keyring.subscribe(self._tell_all)
        if keyring is None or keyring.current is not None:
            self.keyed.set()

    def greet(self, link: Link) -> None:
        """Tell a new link which keys it lacks."""
        if self._keyring is None:
            return
        shared = self._keyring.shared()
        if not {key.key_id for key in shared} <= link.known_keys:
            link.send(Keys(shared))

    def hear(self, message: Keys) -> None:
        """Take in what a member tells."""
        if self._keyring is not None:
            self._keyring.merge(message.keys)

    async def run(self) -> None:
        """Follow the key file until cancelled."""
        last = ""
        while self._keyring is not None:
            await trio.sleep(LOOK)
            try:
                self._keyring.reload()
            except Misconfigured as error:
                if error.message != last:
                    logger.error("%s; the known keys stay in use", error.message)  # noqa: TRY400 - the message says it all
                last = error.message

    def _tell_all(self) -> None:
        assert self._keyring is not None
        shared = self._keyring.shared()
        if shared:
            logger.info("the network key is now %s", shared[0].key_id)
            self.keyed.set()
        for link in self._links():
            link.send(Keys(shared))
        self._changed()
