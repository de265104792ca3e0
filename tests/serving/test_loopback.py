"""Free ports, and asking over HTTP."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.serving.command import Ports
from tritonasync.serving.loopback import http_status, pick_ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_picked_ports_are_free_and_differ() -> None:
    ports = pick_ports(Ports(0, 0, 0))
    chosen = {ports.grpc, ports.http, ports.metrics}
    assert len(chosen) == 3
    for port in chosen:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_wanted_port_is_kept() -> None:
    first = pick_ports(Ports(0, 0, 0))
    assert pick_ports(Ports(first.grpc, 0, first.metrics)).grpc == first.grpc


def test_a_wanted_port_in_use_is_refused_by_name(taken: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"http_port={taken} cannot be used"):
        pick_ports(Ports(0, taken, 0))


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="grpc_port=70000"):
        pick_ports(Ports(70000, 0, 0))


def test_nobody_listening_is_no_status() -> None:
    assert http_status(pick_ports(Ports(0, 0, 0)).http, "/") is None


def test_an_answer_that_is_not_http_is_no_status() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail ready\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        assert http_status(listener.getsockname()[1], "/") is None
        answering.join()
