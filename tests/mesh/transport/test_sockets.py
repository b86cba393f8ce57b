from __future__ import annotations

import socket
import sys

import pytest

from mesh.transport.sockets import _TCP_THIN_LINEAR_TIMEOUTS, prepare


def test_a_connection_sends_at_once_and_repeats_steadily():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as connected:
        prepare(connected)
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            assert connected.getsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS)


def test_what_is_closed_is_refused():
    connected = socket.socket()
    connected.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        prepare(connected)
