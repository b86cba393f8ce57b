"""What two peers say to each other on a link: control messages, and requests multiplexed by small integers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh.messages.inference import Event, InferenceRequest
from mesh.messages.metrics import MetricsControl
from mesh.messages.reachability import DialBack, DialedBack
from mesh.messages.record import ModelState, SealedRecord
from mesh.messages.relay import RelayControl


class ModelLoad(msgspec.Struct, frozen=True):
    """How busy one model of a node is. Rates in tokens per second as measured, 0 = not measured yet."""

    state: ModelState
    running: int = 0
    waiting: int = 0
    slots: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    step: int = 0
    """Engine steps since start: it grows while the engine makes progress."""
    uptime: int = 0
    """Whole seconds since the model last became ready; 0 while it is not, or when nobody counts."""


class Prove(msgspec.Struct, frozen=True, tag="prove"):
    """First message in both directions of a private mesh: show that you hold one of these keys, newest first.

    `invite` is a sealed invite, said by its bearer to the member that it names. It is a secret.
    """

    nonce: bytes
    key_ids: list[str] = []
    invite: bytes = b""

    def __repr__(self) -> str:
        return f"Prove({self.key_ids!r})"


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The answer to `Prove`: a MAC under the named key, see `mesh/link/proof.py`."""

    key_id: str
    mac: bytes


class SharedKey(msgspec.Struct, frozen=True):
    """A network key on its way to a member. `valid_for` in seconds; None for the current key."""

    key_id: str
    key: bytes
    generation: int
    valid_for: float | None = None

    def __repr__(self) -> str:
        return f"SharedKey({self.key_id!r}, generation={self.generation})"


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    """The network keys: to the bearer of a good invite, and to members that lack one."""

    keys: list[SharedKey]


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First message in both directions, after the proofs of a private mesh. `instance` differs at every start of the process."""

    mesh: str
    instance: str
    record: SealedRecord
    minor: int = 0
    features: list[str] = []


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Instead of, or after, a hello: the link will not be. `code` for programs, `message` for the other operator."""

    code: str
    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Sent every second, and at once when a model changes its state.

    `sent` is the sender's own monotonic clock; `echo` returns the other side's last `sent` plus the seconds it was held here, so
    that the receiver's clock minus `echo` is the round trip.
    """

    sent: float
    echo: float | None = None
    models: dict[str, ModelLoad] = {}


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Peer exchange: records of others, newest first, and our own when it changed.

    `ages` are whole seconds since the sender last had proof of each (0 where it is missing): without them the record of a dead
    peer would get a fresh lifetime at every hop.
    """

    records: list[SealedRecord]
    ages: list[int] = []


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """The sender leaves the mesh: no new requests; those under way still finish."""

    reason: str = ""


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Start a request under a number that the opener has not in use."""

    stream: int
    request: InferenceRequest


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Go on with a request that the receiver runs or keeps, under a number as in `Open`. Only with the feature `attach`.

    `tokens` have been given out, over all choices: what follows them is told, and what is still to come. `follow` False: only
    look; the answer is one `Kept`. What is not there, or of another tenant, is `Fail` with `stream_not_found`.
    """

    stream: int = 0
    keep: bytes
    tenant: str
    tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    follow: bool = True

    def __repr__(self) -> str:
        return f"Attach({self.stream}, tokens={self.tokens}, follow={self.follow})"


class Emit(msgspec.Struct, frozen=True, tag="emit"):
    """One event of an opened request. `Done`, `Kept` and `Fail` free the number."""

    stream: int
    event: Event


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The opener lost interest. The other side stops and sends nothing more for this number."""

    stream: int


class Credit(msgspec.Struct, frozen=True, tag="credit"):
    """The opener took `amount` bytes of a request's events and can take as many more. Only with the feature `credit`."""

    stream: int
    amount: Annotated[int, msgspec.Meta(ge=1)]


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """The next bytes of one encoded message that is too large to be sent at once. Only with the feature `pieces`.

    A link carries the pieces of one message at a time, other messages between them.
    """

    data: bytes
    last: bool = False


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """The answer to a message kind that the receiver does not know; it was ignored."""

    kind: str


class Upgrade(msgspec.Struct, frozen=True, tag="upgrade"):
    """The sender would like a second link to the same peer on a direct connection. Answered by one `UpgradeOffer`."""


class UpgradeOffer(msgspec.Struct, frozen=True, tag="upgrade_offer"):
    """How to open it: once, within ten seconds, by the peer on the other end of this very link. No addresses = not now.

    `fingerprint` is the SHA-256 of the certificate (DER) that the listener shows; `ticket` is a secret of 32 bytes.
    """

    addresses: list[str] = []
    fingerprint: bytes = b""
    ticket: bytes = b""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """A direct link took the place of this one: nothing that the sender opened runs here, and it opens nothing more."""


PathControl = DialBack | DialedBack | RelayControl
"""How the two peers reach each other, and others."""

LinkMessage = (
    Prove
    | Proof
    | Keys
    | Hello
    | Refused
    | Heartbeat
    | Records
    | Leave
    | Open
    | Attach
    | Emit
    | Cancel
    | Credit
    | Piece
    | Upgrade
    | UpgradeOffer
    | Drained
    | PathControl
    | MetricsControl
    | Unknown
)
