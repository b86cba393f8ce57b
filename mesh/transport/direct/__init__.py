"""TLS 1.3 over plain TCP, between two peers that proved each other over libp2p before.

`transport` listens and dials, `channel` is one connection, `tickets` say who may come, `certificate` is what the server shows.
"""

from mesh.transport.direct.transport import DirectTransport

__all__ = ["DirectTransport"]
