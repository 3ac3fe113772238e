"""What the predictor makes of a registry that does not answer, or not well."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from levada.serving.registry import Registry, RegistryError


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers one request with these bytes and hangs up; gives its address."""
    servers = []

    def start(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("answer", "message", "status"),
    [
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n", "model-versions/get.*500 Broken", 500),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "IncompleteRead", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<no>", "not JSON", None),
        (b"what?\r\n\r\n", "BadStatusLine", None),
        (b"", "RemoteDisconnected|reset", None),
    ],
)
def test_an_answer_that_is_none_is_told(
    answering: Callable[[bytes], str], answer: bytes, message: str, status: int | None
) -> None:
    with pytest.raises(RegistryError, match=message) as told:
        Registry(answering(answer)).version("things", "1")
    assert told.value.status == status


def test_a_registry_that_is_away_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RegistryError, match="refused"):
        Registry(f"http://127.0.0.1:{port}").recent("things", 1)


def test_a_file_that_is_not_behind_the_registry_is_not_fetched(answering: Callable[[bytes], str]) -> None:
    body = b'{"run": {"info": {"artifact_uri": "s3://models/1"}}}'
    address = answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    with pytest.raises(RegistryError, match="s3://, not behind MLflow"):
        Registry(address).download("run-1", "model.onnx")
