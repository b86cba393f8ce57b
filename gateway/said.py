"""The text of an answer that comes without tokens, kept while another node could go on behind it.

1. It is kept only where the node says that its service can go on behind a text, and the request leaves room for it.
2. Thoughts and tool calls are no text: behind them nobody goes on. Nor behind more than `MAX_CHARACTERS`: they are not kept.
3. A piece of text stands for a token, for want of a better count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.messages.inference import Said

if TYPE_CHECKING:
    from mesh.messages.inference import Delta

MAX_CHARACTERS = 262_144


class SaidText:
    """See the head of this file. `pieces` counts them all, kept or not."""

    def __init__(self) -> None:
        self.pieces = 0
        self._texts: list[str] = []
        self._characters = 0
        self._kept = False

    def begin(self, *, kept: bool) -> None:
        """A node begins the answer; what another one said of it is forgotten."""
        self.pieces = self._characters = 0
        self._texts.clear()
        self._kept = kept

    def add(self, delta: Delta) -> None:
        """One more piece without tokens."""
        self.pieces += 1
        if not self._kept:
            return
        self._characters += len(delta.text)
        self._texts.append(delta.text)
        if delta.reasoning or delta.tool_calls or self._characters > MAX_CHARACTERS:
            self._kept = False
            self._texts.clear()

    @property
    def said(self) -> Said | None:
        """What another node would go on behind; None when none can."""
        return Said("".join(self._texts), self.pieces) if self._kept and self._characters else None

    @property
    def usable(self) -> bool:
        """Whether there is something to go on behind."""
        return self._kept and self._characters > 0
