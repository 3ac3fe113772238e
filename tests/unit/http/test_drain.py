"""The end of a server: who is there is answered, who comes is not let in."""

from __future__ import annotations

import socket

import pytest

from levada.http.server import _hold_off


def test_a_connection_that_the_kernel_has_is_kept_and_no_other_begins() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as first:
        _hold_off(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.3)
        accepted, _ = listener.accept()
        with accepted:
            first.sendall(b"asked")
            assert accepted.recv(10) == b"asked"
            accepted.sendall(b"answered")
            assert first.recv(10) == b"answered"
