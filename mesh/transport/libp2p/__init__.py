"""The network: channels over py-libp2p. Nothing outside this package imports libp2p or multiaddr.

`transport` is the door itself, `channel` one stream on one connection, `carrier` and `websocket` the bytes below a connection,
`addresses` what multiaddrs mean to us, `tamed` the parts of py-libp2p 0.8.1 that are replaced because they are unsafe.
"""

from mesh.transport.libp2p.transport import PROTOCOL, Libp2pTransport

__all__ = ["PROTOCOL", "Libp2pTransport"]
