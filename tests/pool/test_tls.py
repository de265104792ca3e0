"""TLS, mutual TLS and what a mismatch looks like, on the real server."""

import numpy as np
import pytest
import trustme

from tritonasync import TlsConfig, TritonPool
from tritonasync.core.errors import ServerUnreachableError, TlsError
from tritonasync.serving import EmbeddedTriton

pytestmark = [pytest.mark.anyio, pytest.mark.server]

ROW = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, a server's certificate for this host, one for another name, a client's."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    for name, identity in [("server", "localhost"), ("client", "client"), ("alias", "triton.test")]:
        names = [identity, "127.0.0.1"] if name == "server" else [identity]
        certificate = authority.issue_cert(*names)
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        with (folder / f"{name}.pem").open("wb") as chain:
            for blob in certificate.cert_chain_pems:
                chain.write(blob.bytes())
    return folder


def serve(pki, name="server", *options):
    return EmbeddedTriton(
        "tests/models",
        model_control="explicit",
        load_models=["ident"],
        options=[
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={pki / name}.pem",
            f"--grpc-server-key={pki / name}.key",
            *options,
        ],
    )


def url_of(triton):
    """By name, for what succeeds.

    What fails is asked by number: `localhost` is ::1 as well, where nobody listens, and gRPC tells
    the last failure of several addresses only, which may have been that one.
    """
    return triton.grpc_url.replace("127.0.0.1", "localhost")


async def ask(url, tls):
    async with TritonPool(url, tls=tls, timeout_s=10) as pool:
        outputs = await pool.model("ident")(INPUT0=ROW)
        np.testing.assert_array_equal(outputs["OUTPUT0"], ROW)


@pytest.fixture(scope="module")
def secure(pki):
    with serve(pki) as triton:
        yield triton


async def test_tls_from_paths_and_from_bytes(pki, secure):
    await ask(url_of(secure), TlsConfig(ca=pki / "ca.pem"))
    await ask(url_of(secure), TlsConfig(ca=(pki / "ca.pem").read_bytes()))


async def test_an_unknown_authority(pki, secure):
    with pytest.raises(TlsError, match="TlsConfig"):
        await ask(secure.grpc_url, TlsConfig(ca=pki / "other-ca.pem"))


async def test_a_pool_without_tls_at_a_server_with_it(secure):
    # gRPC learns no more than that the socket was closed on it.
    with pytest.raises(ServerUnreachableError, match="does the server want TLS") as caught:
        await ask(secure.grpc_url, None)
    assert caught.value.endpoint == secure.grpc_url


async def test_a_pool_with_tls_at_a_server_without_it(pki, server):
    with pytest.raises(TlsError, match="both sides use TLS"):
        await ask(server.grpc_url, TlsConfig(ca=pki / "ca.pem"))


async def test_readiness_does_not_hide_a_tls_failure(pki, secure):
    async with TritonPool(secure.grpc_url, tls=TlsConfig(ca=pki / "other-ca.pem")) as pool:
        with pytest.raises(TlsError):
            await pool.admin.live()
        with pytest.raises(TlsError):
            await pool.admin.ready()
        with pytest.raises(TlsError):
            await pool.admin.wait_until_ready(timeout_s=30)


async def test_a_certificate_with_another_name(pki):
    async with serve(pki, "alias") as triton:
        with pytest.raises(TlsError):
            await ask(triton.grpc_url, TlsConfig(ca=pki / "ca.pem"))
        await ask(url_of(triton), TlsConfig(ca=pki / "ca.pem", server_name="triton.test"))


async def test_mutual_tls(pki):
    options = ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={pki / 'ca.pem'}"]
    async with serve(pki, "server", *options) as triton:
        await ask(
            url_of(triton),
            TlsConfig(ca=pki / "ca.pem", cert=pki / "client.pem", key=pki / "client.key"),
        )
        # Under TLS 1.3 the server refuses a client without a certificate after the handshake.
        with pytest.raises((TlsError, ServerUnreachableError), match="certificate"):
            await ask(triton.grpc_url, TlsConfig(ca=pki / "ca.pem"))
