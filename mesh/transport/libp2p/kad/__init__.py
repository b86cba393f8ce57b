"""Kademlia by py-libp2p, made safe: `kademlia` is what the mesh uses of it, the other modules are what it stands on.

`host` stands between it and the network, `calls` keeps the connections for its questions, `streams` bounds what goes over them,
`book` holds addresses, `stores` what others give us to keep, `records` says which values are node records.
"""

from mesh.transport.libp2p.kad.kademlia import Kademlia

__all__ = ["Kademlia"]
