"""Every way that was tried to find others, and what came of it: for the start-up log and for `mesh doctor`.

1. Bounded: one entry per way and target, the latest outcome; the oldest go first.
2. `explain` says in whole sentences why nobody was found and what to type next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.access import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_ENTRIES = 200


@dataclass(frozen=True)
class TrailEntry:
    """One way to one target. `time` is trio's clock; `code` is an error's code, or empty when it worked."""

    time: float
    way: str
    target: str
    outcome: str
    code: str = ""
    found: bool = False


class Trail:
    """What one peer tried."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._entries: dict[tuple[str, str], TrailEntry] = {}

    @property
    def entries(self) -> list[TrailEntry]:
        """The latest outcome of every way and target, oldest first."""
        return list(self._entries.values())

    def __iter__(self) -> Iterator[str]:
        """One line for each entry."""
        return (f"{entry.way}: {entry.target}: {entry.outcome}" for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, way: str, target: str, outcome: str, *, code: str = "", found: bool = False) -> bool:
        """Note what came of a try. True when that is news: the last try ended otherwise."""
        last = self._entries.pop((way, target), None)
        self._entries[way, target] = TrailEntry(self._clock(), way, target, outcome, code, found)
        if len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        return last is None or last.outcome != outcome

    def explain(self) -> list[str]:
        """Sentences that say why nobody was found; empty when somebody was."""
        if any(entry.found for entry in self._entries.values()):
            return []
        sentences = [_sentence(entry) for entry in self._entries.values()]
        ways = {entry.way for entry in self._entries.values()}
        if "bootstrap" not in ways:
            sentences.append(
                "No bootstrap address was given. Start `mesh-bootstrap` on a machine that the others reach and pass the address "
                "that it prints: `--bootstrap /ip4/HOST/tcp/4001/p2p/ID`."
            )
        if "mdns" not in ways:
            sentences.append("mDNS is off. On one local network, start without `--no-mdns` and peers find each other.")
        return sentences


def _sentence(entry: TrailEntry) -> str:
    match entry.way, entry.code:
        case _, "other_mesh":
            return f"{entry.target} answered, but {entry.outcome}."
        case _, "open_mesh":
            return f"{entry.target} is at a public address, and this mesh is open. Use a private network between the two."
        case _, code if code in REFUSALS:
            return f"{entry.target} answered, but {entry.outcome}."
        case "bootstrap", "":
            return f"Bootstrap {entry.target}: {entry.outcome}."
        case "bootstrap", _:
            return (
                f"Bootstrap {entry.target} could not be used: {entry.outcome}. Check that it runs, that the address is the one "
                "it printed, and that no firewall is between: `mesh doctor`."
            )
        case "mdns", "":
            return (
                f"mDNS {entry.outcome}. Many networks (guest Wi-Fi, containers, clouds) drop multicast: pass `--bootstrap "
                "ADDRESS` instead."
            )
        case "mdns", _:
            return f"mDNS did not start: {entry.outcome}. Pass `--bootstrap ADDRESS` instead."
        case _:
            return f"{entry.target}, heard of by {entry.way}, could not be reached: {entry.outcome}."
