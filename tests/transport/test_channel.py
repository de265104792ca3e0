"""Channel options that Triton and gRPC were seen to need, names of many servers, TLS files."""

import asyncio
import contextlib
import socket
import struct

import pytest

from tests.transport.scripted import ScriptedServer, echo, make_endpoint
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, ConnectionLostError
from tritonasync.core.policies import TlsConfig
from tritonasync.transport.channel import MAX_MESSAGE_BYTES, balanced, channel_options
from tritonasync.transport.target import parse_target

PEM = b"-----BEGIN CERTIFICATE-----\n"


def test_messages_may_be_as_large_as_grpc_allows():
    options = dict(channel_options(None))
    assert options["grpc.max_send_message_length"] == MAX_MESSAGE_BYTES == 2**31 - 1
    assert options["grpc.max_receive_message_length"] == 2**31 - 1


def test_pings_are_rarer_than_the_server_allows():
    options = dict(channel_options(None))
    assert options["grpc.keepalive_time_ms"] > 300_000
    assert options["grpc.keepalive_permit_without_calls"] == 0


def test_each_channel_has_a_connection_of_its_own():
    assert dict(channel_options(None))["grpc.use_local_subchannel_pool"] == 1


def test_the_servers_name_is_passed_on():
    options = dict(channel_options(TlsConfig(server_name="triton")))
    assert options["grpc.ssl_target_name_override"] == "triton"
    assert "grpc.ssl_target_name_override" not in dict(channel_options(TlsConfig()))


def test_pem_comes_from_a_path_or_bytes(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(PEM)
    for ca in (PEM, path, str(path)):
        assert TlsConfig(ca=ca).pem("ca") == PEM
    assert TlsConfig().pem("ca") is None


@pytest.mark.parametrize("given", [{"cert": PEM}, {"key": PEM}])
def test_cert_and_key_go_together(given):
    with pytest.raises(ConfigurationError, match="cert and key go together"):
        TlsConfig(**given)


def test_a_file_that_is_missing_or_no_pem_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ca cannot be read.*nowhere\.pem"):
        TlsConfig(ca=tmp_path / "nowhere.pem")
    with pytest.raises(ConfigurationError, match="ca holds no PEM block"):
        TlsConfig(ca=b"certificate")


def test_a_private_key_does_not_show_in_the_repr():
    assert "SECRET" not in repr(TlsConfig(cert=PEM, key=b"-----BEGIN KEY-----SECRET"))


# --- names of many servers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["triton:8001", "10.0.0.1:8001", "unix:/t", "ipv4:10.0.0.1:80", ""]
)
def test_one_server_is_not_balanced(target):
    assert "grpc.service_config" not in dict(channel_options(None, target))
    assert not balanced(target)


@pytest.mark.parametrize(
    "target", ["dns:triton:8001", "dns:///triton:8001", "dns://ns:53/triton:1"]
)
def test_calls_to_a_dns_target_go_round_and_its_name_is_soon_resolved_anew(target):
    options = dict(channel_options(None, parse_target(target)))
    assert "round_robin" in options["grpc.service_config"]
    assert options["grpc.dns_min_time_between_resolutions_ms"] <= 1000
    assert balanced(target)


class Names(asyncio.DatagramProtocol):
    """A name server that knows one name (RFC 1035: a header, the question, A records)."""

    def __init__(self):
        self.addresses = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, peer):
        end = query.index(b"\0", 12) + 5  # after the name: type and class
        kind = struct.unpack(">H", query[end - 4 : end - 2])[0]
        found = self.addresses if kind == 1 else []
        head = struct.pack(">2sHHHHH", query[:2], 0x8180, 1, len(found), 0, 0)
        records = b"".join(
            struct.pack(">HHHIH4s", 0xC00C, 1, 1, 0, 4, socket.inet_aton(address))
            for address in found
        )
        self.transport.sendto(head + query[12:end] + records, peer)


@contextlib.asynccontextmanager
async def name_server():
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
        Names, local_addr=("127.0.0.1", 0)
    )
    try:
        yield names, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def call_until(endpoint, holds):
    """Call over and over; return how many connections were lost before it holds."""
    lost = 0
    async with asyncio.timeout(20):
        while not holds():
            try:
                await endpoint.exchange("ModelInfer", b"", Deadline.after(10))
            except ConnectionLostError:
                lost += 1
            await asyncio.sleep(0.005)
    return lost


@pytest.mark.anyio
async def test_calls_are_spread_over_a_names_addresses_and_follow_it():
    """The resolver must be c-ares, gRPC's own: the system's takes no name server from a target."""
    async with name_server() as (names, dns_port), ScriptedServer(ModelInfer=echo) as first:
        port = first.target.rpartition(":")[2]
        async with (
            ScriptedServer(f"127.0.0.2:{port}", ModelInfer=echo) as second,
            ScriptedServer(f"127.0.0.3:{port}", ModelInfer=echo) as third,
        ):
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            endpoint = make_endpoint(f"dns://127.0.0.1:{dns_port}/triton.test:{port}")
            await call_until(endpoint, lambda: first.received and second.received)
            for _ in range(20):
                await endpoint.exchange("ModelInfer", b"", NEVER)
            assert len(first.received) >= 8
            assert len(second.received) >= 8
            assert third.received == []
            names.addresses = ["127.0.0.2", "127.0.0.3"]
            await first.__aexit__()
            assert await call_until(endpoint, lambda: third.received) <= 1
            await endpoint.aclose(NEVER)


@pytest.mark.anyio
async def test_a_plain_name_sticks_to_one_address():
    async with ScriptedServer(ModelInfer=echo) as server:
        endpoint = make_endpoint(f"localhost:{server.target.rpartition(':')[2]}")
        for _ in range(10):
            await endpoint.exchange("ModelInfer", b"", NEVER)
        assert len(server.peers) == 1
        await endpoint.aclose(NEVER)
