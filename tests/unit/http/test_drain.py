"""The end of a server: who is there is answered, who comes is not let in."""

from __future__ import annotations

import socket

import pytest

from levada.http.server import _hold_off, _let_in


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


def test_a_connection_whose_handshake_ends_meanwhile_is_let_in() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        _hold_off(listener)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)  # so that it is not held off
        client.connect(listener.getsockname())
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(0.3)
            client.sendall(b"asked")
            with pytest.raises(TimeoutError):
                accepted.recv(10)
            _let_in(accepted)
            accepted.settimeout(5)
            assert accepted.recv(10) == b"asked"  # TCP has sent it again
