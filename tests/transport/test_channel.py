"""Channel options that Triton and gRPC were seen to need, and TLS files that are checked early."""

import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import TlsConfig
from tritonasync.transport.channel import MAX_MESSAGE_BYTES, channel_options

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
