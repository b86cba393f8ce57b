"""That something happened which whoever switches should look at: many tell, one waits.

What is told while nobody waits is not lost: `clear` before looking, then `wait` returns at once if anything came after.
"""

from __future__ import annotations

import trio


class News:
    """See the head of this file."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        """Something happened. Never blocks."""
        self._event.set()

    def clear(self) -> None:
        """Forget what was told: it is being looked at."""
        self._event = trio.Event()

    async def wait(self) -> None:
        """Until something was told since `clear`."""
        await self._event.wait()
