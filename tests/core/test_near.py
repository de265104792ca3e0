import pytest

from tritonasync.core.near import is_near


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001",
        "LOCALHOST:8001",
        "localhost.:8001",
        "localhost",
        "127.0.0.1:8001",
        "127.8.9.10:8001",
        "0.0.0.0:8001",
        "[::1]:8001",
        "[::1]",
        "[::]:8001",
        "[::ffff:127.0.0.1]:8001",
        "unix:/run/triton.sock",
        "unix:run/triton.sock",
        "unix:///run/triton.sock",
        "unix-abstract:triton",
        "ipv4:127.0.0.1:8001",
        "ipv4:///127.0.0.1:8001",
        "ipv4:127.0.0.1",
        "ipv4:127.0.0.1:8001,127.0.0.2:8002",
        "ipv6:[::1]:8001",
        "ipv6:[::1]:8001,[::1]:8002",
        "ipv6:::1",
        "ipv4:/127.0.0.1:8001",
        "dns:localhost:8001",
        "dns:/localhost:8001",
        "dns:///localhost:8001",
        "dns://8.8.8.8/localhost:8001",
        "dns:///127.0.0.1:8001",
        "dns:///[::1]:8001",
    ],
)
def test_a_target_on_this_machine_is_near(target):
    assert is_near(target) is True


@pytest.mark.parametrize(
    "target",
    [
        "gpu-1:8001",
        "localhost.example.org:8001",
        "notlocalhost:8001",
        "128.0.0.1:8001",
        "10.0.0.1:8001",
        "127.example.org:8001",
        "[2001:db8::1]:8001",
        "[::ffff:10.0.0.1]:8001",
        "[fe80::1%eth0]:8001",
        "ipv4:10.0.0.1:8001",
        "ipv4:127.0.0.1:8001,10.0.0.1:8001",
        "ipv4:10.0.0.1:8001,127.0.0.1:8001",
        "ipv4:127.0.0.1:8001,",
        "ipv4:localhost.example.org:1",
        "ipv6:[2001:db8::1]:8001",
        "ipv6:[::1]:8001,[2001:db8::1]:8001",
        "dns:///gpu-1:8001",
        "dns://127.0.0.1/gpu-1:8001",
        "dns://localhost/gpu-1:8001",
        "xds:///localhost:8001",
        "xds:///localhost",
        "vsock:1:8001",
        "",
    ],
)
def test_a_target_that_may_be_elsewhere_is_not_near(target):
    assert is_near(target) is False
