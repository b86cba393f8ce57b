"""A proven connection that we opened and that carries no channel yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.identity import PeerId

if TYPE_CHECKING:
    from libp2p.abc import INetConn, INetStream

    from mesh.transport.libp2p.medium import Medium
    from mesh.transport.libp2p.tamed import Host


class Connection:
    """Opens streams. It belongs to the transport, which ends it at the latest when it ends itself."""

    def __init__(self, host: Host, connection: INetConn, carrier: Medium) -> None:
        self._host = host
        self._connection = connection
        self._carrier = carrier
        self.peer_id = PeerId(str(connection.muxed_conn.peer_id))
        self.remote_address = carrier.remote_address

    @property
    def closed(self) -> bool:
        """True once it ended, for whatever reason."""
        return self._carrier.closed

    async def open(self, protocol: str) -> INetStream:
        """A stream of `protocol`. Blocks until the other side has agreed to it. Raises what py-libp2p raises."""
        return await self._host.open_stream(self._connection, protocol)

    def forbid_channels(self) -> None:
        """Refuse the link that the other side might open on it."""
        self._carrier.taken = True

    def abort(self) -> None:
        """End it at once, with all of its streams. May be called twice."""
        self._carrier.abort()
