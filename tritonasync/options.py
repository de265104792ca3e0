"""What a pool was made with: a user's arguments, checked once.

Opens nothing, and reads nothing but whether a folder is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from tritonasync.core.checks import is_count
from tritonasync.core.errors import ConfigurationError
from tritonasync.core.policies import BatchPolicy, MemoryPolicy, StreamPolicy, TlsConfig
from tritonasync.core.resilience import EndpointSpec, HealthPolicy, RetryPolicy
from tritonasync.transport.backend import Transport
from tritonasync.transport.channel import HeaderSupply
from tritonasync.transport.placement import Sharing
from tritonasync.transport.shared import check_sharing
from tritonasync.transport.target import parse_target


@dataclass(frozen=True, slots=True)
class Options:
    """A pool's arguments; see :class:`~tritonasync.pool.TritonPool`.

    Raises:
        ConfigurationError: One of them makes no sense.
    """

    endpoints: tuple[EndpointSpec, ...]
    batching: BatchPolicy | None
    retry: RetryPolicy
    health: HealthPolicy
    prefer_loopback: bool
    channels: int
    tls: TlsConfig | None
    headers: HeaderSupply
    transport: Transport
    streams: StreamPolicy
    shared_memory: Sharing
    memory: MemoryPolicy
    model_repository: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what type checkers would; not everybody runs one."""
        self._check_connection()
        self._check_policies()

    def _check_connection(self) -> None:
        if not is_count(self.channels):
            raise ConfigurationError(
                f"channels must be 1 or more, a whole number, not {self.channels!r}"
            )
        if not (self.tls is None or isinstance(self.tls, TlsConfig)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"tls must be a TlsConfig(ca=…) or None, not {self.tls!r}")

    def _check_policies(self) -> None:
        if not (self.batching is None or isinstance(self.batching, BatchPolicy)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"batching must be a BatchPolicy or None, not {self.batching!r}"
            )
        if not isinstance(self.retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"retry must be a RetryPolicy, not {self.retry!r}; RetryPolicy(attempts=1) retries "
                "nothing"
            )
        if self.transport not in get_args(Transport):
            raise ConfigurationError(
                f"transport is one of {', '.join(get_args(Transport))}, not {self.transport!r}"
            )
        if not isinstance(self.streams, StreamPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"streams must be a StreamPolicy, not {self.streams!r}")
        if self.shared_memory not in get_args(Sharing):
            raise ConfigurationError(
                f"shared_memory is one of {', '.join(get_args(Sharing))}, not "
                f"{self.shared_memory!r}"
            )
        for endpoint in self.endpoints:
            check_sharing(endpoint.url, self.shared_memory)
        if not isinstance(self.memory, MemoryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"memory must be a MemoryPolicy, not {self.memory!r}")
        if not isinstance(self.prefer_loopback, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"prefer_loopback is True or False, not {self.prefer_loopback!r}"
            )
        if not isinstance(self.health, HealthPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"health must be a HealthPolicy, not {self.health!r}")


def repository_of(path: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder that a user named as the models' repository.

    Raises:
        ConfigurationError: It is no path, or no folder of this machine.
    """
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"model_repository must be the path of a folder, not {path!r}")
    folder = Path(path).expanduser()
    if not str(path) or not folder.is_dir():
        raise ConfigurationError(
            f"model_repository is no folder on this machine: {str(path)!r}. It is the one with the "
            "models' folders, as tritonserver's --model-repository; leave it out if the server's "
            "files are not here"
        )
    return folder.absolute()


def endpoints_of(
    url: str | EndpointSpec | Sequence[str | EndpointSpec],
) -> tuple[EndpointSpec, ...]:
    """Return the endpoints that a user named, their URLs as gRPC targets."""
    if not isinstance(url, str | EndpointSpec | list | tuple):
        raise ConfigurationError(
            f"a URL or a list of URLs is wanted, not {url!r}: 'localhost:8001', or "
            "['a:8001', 'b:8001']"
        )
    given = [url] if isinstance(url, str | EndpointSpec) else url
    if not given:
        raise ConfigurationError("the list of URLs is empty: at least one is wanted")
    specs = [
        replace(item, url=parse_target(item.url))
        if isinstance(item, EndpointSpec)
        else EndpointSpec(parse_target(item))
        for item in given
    ]
    targets = [spec.url for spec in specs]
    twice = sorted({target for target in targets if targets.count(target) > 1})
    if twice:
        raise ConfigurationError(
            f"given twice: {', '.join(twice)}. To send more to one server, give it a weight: "
            "EndpointSpec(url, weight=2)"
        )
    return tuple(specs)
