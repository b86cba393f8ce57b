"""The keys that every long-running program has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from mesh.config.addresses import check_bootstrap, check_listen_address, check_peer_id
from mesh.config.schema import Option
from mesh.invite import is_invite
from mesh.logs import parse_levels
from mesh.relay.bounds import RelayBounds


def _check_levels(spec: str) -> None:
    parse_levels(spec)


def _check_name(name: str) -> None:
    # It is shown in other operators' terminals and stands in the mDNS record.
    if len(name.encode()) > 63 or not name.isprintable():
        raise ValueError(f"{name[:64]!r} is not a name; give at most 63 bytes of printable text")


class CommonConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What all roles share. A role's schema inherits it and may give a key another default."""

    def __repr__(self) -> str:
        """Without invites: they are secrets."""
        shown = ["(an invite)" if is_invite(text) else text for text in self.bootstrap]
        fields = {**msgspec.structs.asdict(self), "bootstrap": shown}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    bootstrap: Annotated[
        list[str],
        Option(
            help="A peer to find the mesh through: its multiaddr, ending in /p2p/PEER-ID, or an invite to a private mesh.",
            environment=("LIBP2P_BOOTSTRAP_PEERS",),
            metavar="ADDR|INVITE",
            check=check_bootstrap,
        ),
    ] = []
    listen: Annotated[
        list[str],
        Option(help="Where other peers reach this one; port 0 means a free one.", metavar="ADDR", check=check_listen_address),
    ] = msgspec.field(default_factory=lambda: ["/ip4/0.0.0.0/tcp/0"])
    mdns: Annotated[bool, Option(help="Find peers on the local network, and be found.", environment=("LIBP2P_ENABLE_MDNS",))] = (
        True
    )
    dht: Annotated[
        bool, Option(help="Find peers beyond the local network through a distributed hash table, and help others to find theirs.")
    ] = True
    direct: Annotated[
        bool, Option(help="Carry links over plain TLS once libp2p has proven both sides, where that is possible: it costs less.")
    ] = True
    relay: Annotated[
        bool | None,
        Option(
            help="Pass bytes on between peers of the mesh that cannot dial each other; they are encrypted end to end.",
            default_help="on for a bootstrap peer, and for others that are known to be reachable",
        ),
    ] = None
    relay_circuits: Annotated[
        int, msgspec.Meta(ge=1), Option(help="Pairs of peers that this one relays at the same time.", metavar="N")
    ] = RelayBounds.circuits
    relay_rate: Annotated[
        int, msgspec.Meta(ge=1_000), Option(help="Bytes per second in each direction of a relayed pair.", metavar="BYTES")
    ] = RelayBounds.rate
    relay_total: Annotated[
        int, msgspec.Meta(ge=1_000), Option(help="Bytes that a relayed pair may use in an hour.", metavar="BYTES")
    ] = RelayBounds.total
    mesh: Annotated[str, Option(help="The mesh to join: peers of another name are ignored.", check=_check_name)] = "default"
    private: Annotated[
        bool, Option(help="Only peers with the network key get in; the first start makes it, `mesh invite` lets others in.")
    ] = False
    allow_peer: Annotated[
        list[str],
        Option(help="Link with this peer; when given, with no peer that is not named.", metavar="PEER-ID", check=check_peer_id),
    ] = []
    deny_peer: Annotated[
        list[str], Option(help="Never link with this peer; beats --allow-peer.", metavar="PEER-ID", check=check_peer_id)
    ] = []
    name: Annotated[
        str,
        Option(help="The name shown to people.", check=_check_name, default_help="the host name and the end of the peer id"),
    ] = ""
    state_dir: Annotated[
        Path | None,
        Option(
            help="Holds the peer's key and its live addresses; another folder is another peer.",
            default_help="infermesh/ROLE in the platform's state folder",
        ),
    ] = None
    drain_timeout: Annotated[
        float,
        msgspec.Meta(ge=0),
        Option(help="Seconds that requests in flight may take to finish after SIGTERM.", metavar="SECONDS"),
    ] = 30.0
    log_format: Annotated[Literal["text", "json"], Option(help="How log lines on stderr look.")] = "text"
    log_level: Annotated[
        str, Option(help="debug, info, warning or error; per module as in info,mesh.link=debug.", check=_check_levels)
    ] = "info"
    config_file: Annotated[
        Path | None, Option(help="A TOML or JSON file with any of these keys.", metavar="FILE", in_file=False)
    ] = None
