"""What a user decides once, for a whole pool: frozen values, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, cast

from tritonasync.core.checks import is_count, is_duration
from tritonasync.core.errors import ConfigurationError

Headers: TypeAlias = Mapping[str, str]
"""gRPC metadata sent with every call. Names are lower case; values are printable ASCII."""

HeaderSource: TypeAlias = Headers | Callable[[], Headers] | Callable[[], Awaitable[Headers]]
"""Headers, or a function (plain or async) that gives them anew for each call, as for a token."""

PadValue: TypeAlias = float | str | bytes
"""What a row is filled up with: a number, or a string for BYTES."""

Pem: TypeAlias = bytes | str | Path
"""A PEM file's path (``str`` or ``Path``), or its bytes."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How to talk TLS: who is trusted, and who we are.

    Attributes:
        ca: Certificates of the authorities that may have signed the server's; ``None`` trusts those
            that gRPC ships.
        cert: Our own certificate chain, for mutual TLS.
        key: The private key of ``cert``.
        server_name: The name that the server's certificate carries, where it differs from the
            address called.

    Raises:
        ConfigurationError: A file cannot be read or is no PEM file, or only one of ``cert`` and
            ``key`` is given.
    """

    ca: Pem | None = field(default=None, repr=False)
    cert: Pem | None = field(default=None, repr=False)
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError("TlsConfig: cert and key go together; only one was given")
        names: tuple[Literal["ca", "cert", "key"], ...] = ("ca", "cert", "key")
        for name in names:
            self.pem(name)  # a wrong file would otherwise show as a failed handshake, much later

    def pem(self, name: Literal["ca", "cert", "key"]) -> bytes | None:
        """Return the bytes of one of the three, read from its file if need be."""
        source: Pem | None = getattr(self, name)
        if source is None:
            return None
        if not isinstance(source, bytes | str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"TlsConfig: {name} is a path or PEM bytes, not {source!r}")
        content = source if isinstance(source, bytes) else _read(name, Path(source))
        if b"-----BEGIN " not in content:
            raise ConfigurationError(f"TlsConfig: {name} holds no PEM block (-----BEGIN …)")
        return content


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TlsConfig: {name} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How the rows of many callers become batches.

    A batch leaves at once while fewer than the limit are in flight, and rows gather while that many
    are. The limit of each model moves between ``min_inflight`` and ``max_inflight`` with measured
    latency.

    Attributes:
        max_rows: The most rows of a batch; ``None`` for the model's ``max_batch_size``, which is
            the limit in any case.
        max_nbytes: The most bytes of a batch's inputs; ``None`` for 2 MiB, and 8 MiB once batches
            lie in shared memory. A row that is larger is sent alone. Large messages are on one side
            at a time: 8 callers with images of 600 kB were answered 1.5 times as fast in batches of
            2 MiB as in one of them all, and 64 callers as fast.
        linger_s: Seconds that a row waits for company even if a batch could leave. 0 delays
            nobody: calls made in one turn of the event loop share a batch all the same.
        min_inflight: The least batches in flight, for each endpoint, that the limit comes down to.
        max_inflight: The most batches in flight of one model, for each endpoint. Equal to
            ``min_inflight``, it is the limit.
        max_queued_rows: The most rows of one model that wait; a call that would go beyond is
            refused with :class:`~tritonasync.core.errors.QueueFullError`.

    Raises:
        ConfigurationError: A limit makes no sense.
    """

    max_rows: int | None = None
    max_nbytes: int | None = None
    linger_s: float = 0.0
    min_inflight: int = 1
    max_inflight: int = 16
    max_queued_rows: int = 65_536

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_nbytes", "min_inflight", "max_inflight", "max_queued_rows"):
            self._check_count(name)
        if not is_duration(self.linger_s):
            raise ConfigurationError(
                f"BatchPolicy: linger_s is 0 or more seconds, not {self.linger_s!r}"
            )
        if self.min_inflight > self.max_inflight:
            raise ConfigurationError(
                f"BatchPolicy: min_inflight={self.min_inflight} is above "
                f"max_inflight={self.max_inflight}"
            )
        if self.max_rows is not None and self.max_rows > self.max_queued_rows:
            raise ConfigurationError(
                f"BatchPolicy: max_queued_rows={self.max_queued_rows} cannot hold one batch of "
                f"max_rows={self.max_rows}"
            )

    def _check_count(self, name: str) -> None:
        value: object = getattr(self, name)
        if value is None and name in {"max_rows", "max_nbytes"}:
            return
        if not is_count(value):
            raise ConfigurationError(
                f"BatchPolicy: {name} is a whole number from 1 on, not {value!r}"
            )


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """How requests share the streams to a server, and how much is kept for slow readers.

    Attributes:
        max_streams: Streams to one server that requests share. Others are opened beside the first
            only when there is enough to do for them, or when an answer would have to wait for
            another model's (a server answers in turn on one stream). A request of a decoupled model
            has a stream to itself, beyond these, while it lasts.
        share_decoupled: Whether such requests share streams, too, by model and version. A server
            that lacks the model, because it is unloaded under load, dies of it (seen on 2.51).
        max_buffered: Responses kept for one reader of many; with more, the server is held back, as
            soon as nobody else on that stream has room for what comes.
        max_buffered_nbytes: The same, in bytes.
        max_overrun: Responses kept for one reader at the most, where the server is not held back:
            others on his stream are served, or the pool is closing. Then he is told with a
            :class:`~tritonasync.core.errors.ResponseOverflowError`.
        max_overrun_nbytes: The same, in bytes.
        idle_close_s: Seconds after which a stream with nothing to do is closed. An open one holds
            up the exit of a server (2.51 waits for more than 40 s).

    Raises:
        ConfigurationError: A limit makes no sense.
    """

    max_streams: int = 4
    share_decoupled: bool = False
    max_buffered: int = 256
    max_buffered_nbytes: int = 4 << 20
    max_overrun: int = 16_384
    max_overrun_nbytes: int = 256 << 20
    idle_close_s: float = 10.0

    def __post_init__(self) -> None:
        counts = "max_buffered", "max_buffered_nbytes", "max_overrun", "max_overrun_nbytes"
        for name in ("max_streams", *counts):
            value: object = getattr(self, name)
            if not is_count(value):
                raise ConfigurationError(
                    f"StreamPolicy: {name} is a whole number from 1 on, not {value!r}"
                )
        if not isinstance(self.share_decoupled, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"StreamPolicy: share_decoupled is True or False, not {self.share_decoupled!r}"
            )
        for kept, most in zip(counts[:2], counts[2:], strict=True):
            low, high = getattr(self, kept), getattr(self, most)
            if low > high:
                raise ConfigurationError(f"StreamPolicy: {kept}={low} is above {most}={high}")
        if not is_duration(self.idle_close_s) or not self.idle_close_s:
            raise ConfigurationError(
                f"StreamPolicy: idle_close_s is more than 0 seconds, not {self.idle_close_s!r}"
            )


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """How much memory is shared with servers, and which tensors lie in it.

    Attributes:
        max_nbytes: The most that regions take from the system, of each kind of memory. A region
            that is there stays until the pool is closed.
        region_nbytes: The size of a region. A tensor that is larger has one of its own.
        min_nbytes: Inputs, or outputs, of a request that are smaller than this in all travel in the
            message: taking and naming places costs more than the copies then. Measured on one
            machine, each call alone, in shared memory against the wire: 0.76 times the requests of
            64 KiB, 1.0 to 1.9 times those of 256 KiB, 2.7 to 4.9 times those of 1 MiB.
        when_full: What a lease does when there is no room, or a call where shared memory is
            insisted on: ``"wait"`` within its deadline, or ``"raise"`` a
            :class:`~tritonasync.core.errors.MemoryExhaustedError`. Calls that are placed unasked go
            on the wire instead.
        report_after_s: Seconds after which memory that is still held is reported, once, by a
            warning in the log that names who took it; ``math.inf`` for never.
        stacks: Whether the stack of whoever takes memory is kept, for that report (20 us a call).
        device_id: The GPU of this process whose memory is shared, by its number.
        devices: Which GPU of the server a GPU of this process is, by number, where the two count
            them differently (``CUDA_VISIBLE_DEVICES``). A server does not check it.

    Raises:
        ConfigurationError: A limit makes no sense.
    """

    max_nbytes: int = 1 << 30
    region_nbytes: int = 64 << 20
    min_nbytes: int = 256 << 10
    when_full: Literal["wait", "raise"] = "wait"
    report_after_s: float = 60.0
    stacks: bool = False
    device_id: int = 0
    devices: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __post_init__(self) -> None:
        for name in ("max_nbytes", "region_nbytes", "min_nbytes"):
            value: object = getattr(self, name)
            if not is_count(value):
                raise ConfigurationError(
                    f"MemoryPolicy: {name} is a whole number of bytes from 1 on, not {value!r}"
                )
        if self.region_nbytes > self.max_nbytes:
            raise ConfigurationError(
                f"MemoryPolicy: region_nbytes={self.region_nbytes} is above "
                f"max_nbytes={self.max_nbytes}"
            )
        if self.when_full not in ("wait", "raise"):
            raise ConfigurationError(
                f"MemoryPolicy: when_full is 'wait' or 'raise', not {self.when_full!r}"
            )
        forever = self.report_after_s == math.inf
        if not (forever or is_duration(self.report_after_s)) or not self.report_after_s:
            raise ConfigurationError(
                f"MemoryPolicy: report_after_s is more than 0 seconds, not {self.report_after_s!r}"
            )
        if not isinstance(self.stacks, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"MemoryPolicy: stacks is True or False, not {self.stacks!r}")
        if not is_count(self.device_id, least=0):
            raise ConfigurationError(
                f"MemoryPolicy: device_id is a GPU's number from 0 on, not {self.device_id!r}"
            )
        if not isinstance(self.devices, Mapping) or not all(  # pyright: ignore[reportUnnecessaryIsInstance]
            is_count(number, least=0) for pair in self.devices.items() for number in pair
        ):
            raise ConfigurationError(
                f"MemoryPolicy: devices maps a GPU's number to another, not {self.devices!r}"
            )


@dataclass(frozen=True, slots=True)
class Padding:
    """How rows of different lengths share a batch: filled up to one length, and cut back.

    Attributes:
        inputs: The inputs whose rows differ in length, each with the value to fill up with.
        mask: The input that tells the model which elements are real. It is made for the user, of
            ones, and filled up with zeros; ``None`` for a model that takes none.
        buckets: The lengths to fill up to, in rising order; a row goes with others of its bucket,
            so that long rows do not slow short ones. Empty: to the longest row of the batch.
        outputs: The outputs to cut back to the row's own length; ``None`` for each whose axis is
            free (-1) in the model's signature.
        axis: The axis that differs, counted in one item, without the batch axis.

    Raises:
        ConfigurationError: An attribute makes no sense.
    """

    inputs: Mapping[str, PadValue]
    mask: str | None = None
    buckets: tuple[int, ...] = ()
    outputs: tuple[str, ...] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Mapping) or not self.inputs:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"Padding: inputs maps names to the values to fill up with, such as "
                f"{{'input_ids': 0}}, not {self.inputs!r}"
            )
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        names = (*self.inputs, *(self.outputs or ()), *([] if self.mask is None else [self.mask]))
        if not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"Padding: names are strings, not {names!r}")
        if self.mask in self.inputs:
            raise ConfigurationError(f"Padding: {self.mask!r} is the mask and an input to fill up")
        if not is_count(self.axis, least=0):
            raise ConfigurationError(
                f"Padding: axis is a whole number from 0 on, not {self.axis!r}"
            )
        for name in ("buckets", "outputs"):
            self._freeze(name)
        lengths = self.buckets
        rising = all(low < high for low, high in pairwise(lengths))
        if not (all(is_count(length) for length in lengths) and rising):
            raise ConfigurationError(
                f"Padding: buckets are whole numbers from 1 on in rising order, not {lengths!r}"
            )

    def _freeze(self, name: str) -> None:
        """Keep a tuple of what may have been given as a list."""
        value: object = getattr(self, name)
        if isinstance(value, str) or not isinstance(value, Sequence | None):
            raise ConfigurationError(f"Padding: {name} is a list, not {value!r}")
        if value is not None:
            object.__setattr__(self, name, tuple(cast("Sequence[object]", value)))

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.inputs)), self.mask, self.buckets, self.outputs, self.axis))
