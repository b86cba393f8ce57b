"""Peers that cannot be dialled, reached over others that can.

`relay` joins the streams of others, within `bounds`, and `circuit` copies their bytes; `ledger` counts them. `reservations` are
those that this peer has with relays, `joining` asks relays for others, `wire` is what is said on a stream before it is joined.
"""

PROTOCOL = "/infermesh/relay/1.0.0"
"""Of the stream that becomes one half of a circuit."""
