"""A URL becomes a gRPC target, or an error that says what it should be."""

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.transport.target import parse_target


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8001",
        "127.0.0.1:1",
        "[::1]:65535",
        "[fe80::1%eth0]:8001",
        "triton_a.internal:8001",
        "dns:///triton.internal:8001",
        "xds:///triton",
        "unix:/run/triton.sock:8001",
        "ipv4:10.0.0.1:8001",
        "ipv6:[::1]:8001",
    ],
)
def test_a_target_of_grpc_passes(url):
    assert parse_target(f" {url}\n") == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("localhost", "host:port"),
        ("localhost:", "host:port"),
        (":8001", "host:port"),
        ("localhost:grpc", "host:port"),
        ("::1:8001", "host:port"),
        ("local host:8001", "host:port"),
        ("localhost:8001/v2", "host:port"),
        ("localhost:0", "out of range"),
        ("localhost:70000", "out of range"),
        ("http://localhost:8000", "leave it out. Triton speaks gRPC on a port of its own"),
        ("https://localhost:8000", "tls=TlsConfig"),
        ("grpc://localhost:8001", "leave it out"),
        ("HTTP://localhost:8000", "leave it out"),
        ("tcp://localhost:8001", "leave it out"),
        ("dns:", "names nothing"),
        ("dns:///", "names nothing"),
        ("unix:", "names nothing"),
    ],
)
def test_anything_else_is_refused_with_what_it_should_be(url, says):
    with pytest.raises(ConfigurationError) as caught:
        parse_target(url)
    assert says in str(caught.value)


@pytest.mark.parametrize("url", [["localhost:8001"], None, 8001])
def test_what_is_no_text_is_refused(url):
    with pytest.raises(ConfigurationError, match="one URL"):
        parse_target(url)
