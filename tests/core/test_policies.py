import pytest

from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import TlsConfig

PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def test_a_pem_is_given_as_bytes_or_as_a_file(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_bytes(PEM)
    for source in (PEM, file, str(file)):
        assert TlsConfig(ca=source).pem("ca") == PEM
    assert TlsConfig().pem("ca") is None


@pytest.mark.parametrize("fields", [{"cert": PEM}, {"key": PEM}])
def test_a_certificate_without_its_key_is_refused(fields):
    with pytest.raises(ConfigurationError, match="cert and key go together"):
        TlsConfig(**fields)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_file_that_is_not_there_is_named_when_the_policy_is_made(name, tmp_path):
    fields = {"cert": PEM, "key": PEM, name: tmp_path / "missing.pem"}
    with pytest.raises(ConfigurationError, match=rf"{name} cannot be read: .*missing\.pem"):
        TlsConfig(**fields)


@pytest.mark.parametrize("content", [b"", b"MIIB", b"\x30\x82"])
def test_what_is_no_pem_is_refused(content):
    with pytest.raises(ConfigurationError, match="ca holds no PEM block"):
        TlsConfig(ca=content)


def test_keys_are_not_shown():
    assert "BEGIN" not in repr(TlsConfig(ca=PEM, cert=PEM, key=PEM))


def test_what_is_neither_a_path_nor_bytes_is_refused():
    with pytest.raises(ConfigurationError, match="ca is a path or PEM bytes, not 5"):
        TlsConfig(ca=5)
