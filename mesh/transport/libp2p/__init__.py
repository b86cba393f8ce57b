"""The network: channels over py-libp2p. Nothing outside this package imports libp2p or multiaddr.

`transport` is the door itself, `dialling` and `listeners` its two directions, `channel` one stream on one connection, `medium`,
`carrier`, `websocket` and `circuit` the bytes below a connection, `addresses` what multiaddrs mean to us, `tamed` the parts of
py-libp2p that are replaced because they are unsafe as they come.

Only version `SUPPORTED` loads: what is replaced reaches into its internals.
"""

import warnings
from importlib import metadata

from mesh.errors import Misconfigured

SUPPORTED = "0.8.1"


def check_version(found: str) -> None:
    """Raise Misconfigured unless `found` is the version of py-libp2p that this package was written for."""
    if found != SUPPORTED:
        raise Misconfigured(f"libp2p {found} is installed, but only {SUPPORTED} is safe to run; pip install libp2p=={SUPPORTED}")


check_version(metadata.version("libp2p"))

with warnings.catch_warnings():
    # Its WebSocket transport, which we do not use, imports deprecated names of other packages.
    warnings.simplefilter("ignore", DeprecationWarning)
    import libp2p as _libp2p  # noqa: F401 - before any module below imports parts of it

from mesh.transport.libp2p.transport import PROTOCOL, Libp2pTransport  # noqa: E402 - see above

__all__ = ["PROTOCOL", "SUPPORTED", "Libp2pTransport", "check_version"]
