"""Every way that was tried to find others, and what came of it: for the start-up log and for `mesh doctor`.

1. Bounded: one entry per way and target, the latest outcome; the oldest go first.
2. `explain` says in whole sentences why nobody was found and what to type next; each cause has a sentence of its own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.access import REFUSALS
from mesh.addresses import is_loopback_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_ENTRIES = 200
MAX_SENTENCES = 12
"""A log is read by people; what is over is counted."""
NOTE = "note"
"""The code of an entry that only tells, and explains nothing."""
LOCAL = "the local network"
"""The target of ways that call to everybody."""

_ADVICE = (
    (
        "another peer answers",
        "Copy the address anew from the ready line of the peer you mean: its identity changed or the ID is wrong.",
    ),
    ("not of this mesh program", "It runs another libp2p program: check host and port."),
    ("as a libp2p peer", "Some other program listens there: check the port, 4001 by default for `mesh-bootstrap`."),
    ("connection refused", "Nothing listens there: start `mesh-bootstrap`, or correct the port to the one in its ready line."),
    (
        "then says nothing",
        "Another program listens there, or the peer hangs: check the port (`mesh-bootstrap`: 4001), or restart the peer.",
    ),
    (
        "no answer within",
        "The machine is off, the host is wrong, or a firewall is between: open its TCP port, then `mesh doctor --bootstrap`.",
    ),
    ("no address is known for this name", "The host name does not exist: correct it or use the IP address."),
    ("unreachable", "There is no route to it: check the IP address and this machine's network."),
    ("no route to host", "There is no route to it: check the IP address and this machine's network."),
)
"""What to do, by what a dial said."""
_UNREACHED = "cannot reach the peer at any address: "
_GENERAL_ADVICE = "Check that it runs, that the address is the one it printed, and that no firewall is between: `mesh doctor`."


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

    def outcome(self, way: str, target: str) -> str:
        """What came of it last; empty when it was not tried."""
        entry = self._entries.get((way, target))
        return entry.outcome if entry is not None else ""

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
        return [*self._failures(), *self._untried()]

    def explain_no_node(self, links: int, start: str, *, heard: int = 0, forbidden: int = 0) -> list[str]:
        """Sentences that say why no node is linked, though `links` other peers are. `start`: what starts one.

        `heard`: nodes whose records are known; `forbidden`: those of them that our own lists forbid.
        """
        linked = f"Linked with {_count(links, 'other peer')} of the mesh"
        lists = f"Our own lists forbid {_count(forbidden, 'node')} of the mesh: see --deny-peer and --allow-peer here."
        if heard > forbidden:
            said = [f"{linked}, but with none of the {_count(heard, 'node')} that it knows, so no model can be served."]
        elif heard:
            said = [f"{linked}, but with no node, so no model can be served."]
        else:
            known = f"{linked}, but no node was heard of, so no model can be served. "
            said = [f"{known}Start one: {start}; if one runs, see in its log why it cannot join."]
        return [*said, *([lists] if forbidden else []), *self._failures()]

    def _failures(self) -> list[str]:
        entries = [entry for entry in self._entries.values() if not entry.found and entry.code != NOTE]
        # Where the operator said to look comes first.
        entries.sort(key=lambda entry: entry.way != "bootstrap")
        sentences = list(dict.fromkeys(_sentence(entry) for entry in entries))
        more = len(sentences) - MAX_SENTENCES
        return sentences if more <= 0 else [*sentences[:MAX_SENTENCES], f"And {more} more like these."]

    def _untried(self) -> list[str]:
        ways = {entry.way for entry in self._entries.values()}
        sentences = []
        if "bootstrap" not in ways:
            sentences.append(
                "No bootstrap address was given. Start `mesh-bootstrap` on a machine that the others reach and pass the address "
                "that it prints: `--bootstrap /ip4/HOST/tcp/4001/p2p/ID`."
            )
        if "mdns" not in ways:
            sentences.append("mDNS is off. On one local network, start without `--no-mdns` and peers find each other.")
        return sentences


def how_to_join(mesh: str, addresses: Sequence[str], *, private: bool) -> str:
    """What starts a node that joins by way of a peer at `addresses`."""
    if private:
        return "`mesh-node --bootstrap INVITE`, with what `mesh invite --state-dir DIR` prints at a member"
    name = "" if mesh == "default" else f" --mesh {shlex.quote(mesh)}"
    far = [address for address in addresses if not is_loopback_address(address)]
    return f"`mesh-node{name} --bootstrap {next(iter((*far, *addresses)), 'ADDRESS')}`"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def brief(target: str, outcome: str) -> str:
    """What came of a try, without the target, for a text that names it already."""
    return outcome.removeprefix(_UNREACHED).removeprefix(f"{target}: ")


def _sentence(entry: TrailEntry) -> str:
    match entry.way, entry.code:
        case "mdns", "other_mesh":
            return (
                f"{entry.target} was heard, but {entry.outcome}. Start both with the same `--mesh NAME` if they belong together."
            )
        case _, "other_mesh":
            return f"{entry.target} answered, but {entry.outcome}."
        case _, "open_mesh":
            return f"{entry.target} is at a public address, and this mesh is open. Use a private network between the two."
        case _, code if code in REFUSALS:
            return f"{entry.target} answered, but {entry.outcome}."
        case "bootstrap", "":
            return f"Bootstrap {entry.target}: {entry.outcome}."
        case "bootstrap", _:
            return f"Bootstrap {entry.target} could not be used: {brief(entry.target, entry.outcome)}. {_advice(entry.outcome)}"
        case "mdns", "":
            return (
                f"mDNS {entry.outcome}. Either no other peer runs here, or the network (guest Wi-Fi, containers, clouds) drops "
                "multicast between machines: start a node, or pass `--bootstrap ADDRESS`."
            )
        case "mdns", "heard":
            return f"mDNS {entry.outcome}, but there is no link yet."
        case "mdns", "deaf":
            return (
                f"mDNS {entry.outcome}: multicast is blocked on this machine. Allow UDP port 5353 in its firewall, or pass "
                "`--bootstrap ADDRESS`."
            )
        case "dht", "empty":
            return "The DHT has nobody in its table: it needs one peer of the mesh to start from. Pass `--bootstrap ADDRESS`."
        case "dht", "":
            return f"The DHT {entry.outcome}."
        case "mdns", _:
            return f"mDNS did not start: {entry.outcome}. Pass `--bootstrap ADDRESS` instead."
        case _:
            return f"{entry.target}, heard of by {entry.way}, could not be reached: {entry.outcome}."


def _advice(outcome: str) -> str:
    return next((advice for words, advice in _ADVICE if words in outcome), _GENERAL_ADVICE)
