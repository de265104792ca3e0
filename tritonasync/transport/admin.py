"""``pool.admin``: what a user asks a server beside inference.

Owns: the public signatures (``timeout_s`` in, values of ``core.reports`` out), waiting until an
effect is there, and telling the catalog when a signature may have changed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerNotReadyError,
    ServerUnreachableError,
    TlsError,
    TritonError,
)
from tritonasync.core.ports import ModelCatalog
from tritonasync.core.reports import IndexEntry, ModelConfig, ModelStatistics, ServerMetadata
from tritonasync.core.values import ModelSpec
from tritonasync.transport.control import Control
from tritonasync.transport.target import parse_target

FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5


class Admin:
    """Liveness, readiness, signatures, statistics, loading and unloading.

    With several endpoints, a question whose answers can be summed up (``live``, ``ready``) is put
    to all; one whose answers differ (``index``, ``statistics``, …) wants one endpoint:
    ``pool.admin.at("host:8001").index()``. ``load`` and ``unload`` go from endpoint to endpoint, so
    that the others serve meanwhile, and stop at the first that fails.

    Every method takes ``timeout_s``, the seconds it may take (``None``: the pool's own), and raises
    ``DeadlineExceededError`` when they are over, ``PoolClosedError`` and ``WrongContextError`` as
    the pool's handles do, ``ServerError`` and ``TransportError`` as the call failed.

    Args:
        controls: Gives the calls of each server by target, after checking that the pool may be
            used.
        catalog: What is told of reloaded models.
        timeout_s: The pool's own time limit, in seconds.
    """

    def __init__(
        self,
        controls: Callable[[], Mapping[str, Control]],
        catalog: ModelCatalog,
        timeout_s: float | None,
    ) -> None:
        self._controls = controls
        self._catalog = catalog
        self._timeout_s = timeout_s

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The gRPC targets of the pool's endpoints."""
        return tuple(self._controls())

    def at(self, url: str) -> Admin:
        """Return the same calls for one endpoint of the pool.

        Raises:
            ConfigurationError: It is no endpoint of the pool.
        """
        target = parse_target(url)

        def control() -> dict[str, Control]:
            controls = self._controls()
            if target not in controls:
                raise ConfigurationError(
                    f"{target} is no endpoint of this pool, only: {', '.join(controls)}"
                )
            return {target: controls[target]}

        control()
        return Admin(control, self._catalog, self._timeout_s)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s)

    def _control(self, question: str) -> Control:
        """Return the only endpoint's calls."""
        controls = self._controls()
        if len(controls) > 1:
            example = next(iter(controls))
            raise ConfigurationError(
                f"{question} may differ between the pool's {len(controls)} endpoints: ask one of "
                f"them, as in pool.admin.at({example!r}).{question}(…)"
            )
        return next(iter(controls.values()))

    async def live(self, *, timeout_s: float | None = None) -> bool:
        """Return whether every server is alive; ``False`` too if one cannot be reached."""
        deadline = self._deadline(timeout_s)
        try:
            return all([await control.live(deadline) for control in self._controls().values()])
        except TlsError:
            raise
        except (ServerUnreachableError, ConnectionLostError):
            return False

    async def ready(
        self, model: str | None = None, version: str = "", *, timeout_s: float | None = None
    ) -> bool:
        """Return whether every server, or a model on each, is ready; ``False`` if unreachable.

        Args:
            model: The model asked for; ``None`` for the server as a whole.
            version: A version of it; empty for any.
            timeout_s: Seconds this may take.
        """
        deadline = self._deadline(timeout_s)
        try:
            for control in self._controls().values():
                if not await _ready(control, model, version, deadline):
                    return False
        except TlsError:
            raise
        except (ServerUnreachableError, ConnectionLostError, ServerNotReadyError):
            return False
        except (ModelNotFoundError, ModelNotReadyError):
            return False
        return True

    async def wait_until_ready(
        self, model: str | None = None, version: str = "", *, timeout_s: float | None = None
    ) -> None:
        """Wait until every server, or a model on each, is ready.

        Raises:
            DeadlineExceededError: It was not ready in time; its cause says what was the matter.
            ModelNotFoundError: A server's repositories have no such model.
            TlsError: No secure connection can be made, which waiting does not mend.
        """
        deadline = self._deadline(timeout_s)
        for control in self._controls().values():
            await self._wait_until_ready(control, model, version, deadline)

    async def _wait_until_ready(
        self, control: Control, model: str | None, version: str, deadline: Deadline
    ) -> None:
        where = f"model {model!r}" if model else "the server"

        async def check() -> None:
            # A connection that is refused or broken surfaces as itself and becomes the cause.
            self._controls()  # raises if the pool was closed meanwhile
            ready = await _ready(control, model, version, deadline)
            if not ready and model is not None:
                await _check_known(control, model, deadline)
            if not ready:
                raise ServerNotReadyError(
                    f"{where} at {control.target} is not ready",
                    code="UNAVAILABLE",
                    details="not ready",
                    model=model,
                    endpoint=control.target,
                )

        await _repeat(check, deadline, f"{where} was not ready")

    async def server_metadata(self, *, timeout_s: float | None = None) -> ServerMetadata:
        """Return the server's name, version and extensions."""
        return await self._control("server_metadata").server_metadata(self._deadline(timeout_s))

    async def metadata(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> ModelSpec:
        """Return a model's signature, asked anew (a handle's ``spec()`` gives the known one)."""
        return await self._control("metadata").describe(model, version, self._deadline(timeout_s))

    async def config(
        self, model: str, version: str = "", *, timeout_s: float | None = None
    ) -> ModelConfig:
        """Return a model's configuration."""
        return await self._control("config").config(model, version, self._deadline(timeout_s))

    async def index(
        self, *, ready_only: bool = False, timeout_s: float | None = None
    ) -> list[IndexEntry]:
        """Return the model versions in the server's repositories, or those ready to answer."""
        return await self._control("index").index(self._deadline(timeout_s), ready_only=ready_only)

    async def statistics(
        self, model: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> list[ModelStatistics]:
        """Return the server's statistics of each loaded version; of all models by default."""
        return await self._control("statistics").statistics(
            model, version, self._deadline(timeout_s)
        )

    async def load(
        self,
        model: str,
        *,
        config: Mapping[str, object] | str | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Load a model, or load it again; done when it answers.

        Of several endpoints, one is loaded after the other, so that the others serve meanwhile;
        after one that fails, those that follow are left as they are.

        Args:
            model: The model's name in the repository.
            config: A configuration that stands in for ``config.pbtxt``, as JSON or as what becomes
                JSON. It stays until the model is unloaded, or is loaded after its files have
                changed: a plain load in between changes nothing (seen on 2.51).
            files: The model's files by path below its folder (``"1/model.onnx"``) in place of the
                repository's; wants a ``config``, and stays until the next load.
            timeout_s: Seconds this may take; large models take minutes.

        Raises:
            ConfigurationError: ``config`` is nothing that JSON can say, or a file no ``bytes``.
            ControlRefusedError: The server was not started with explicit model control.
            LoadFailedError: The model is missing or broken; the version loaded before serves on.
        """
        text = config if config is None or isinstance(config, str) else _json(model, config)
        for path, content in (files or {}).items():
            if not isinstance(content, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"model {model!r}: file {path!r} is given as bytes, not "
                    f"{type(content).__name__}",
                    model=model,
                )
        deadline = self._deadline(timeout_s)

        async def load(control: Control) -> None:
            try:
                await control.load(model, text, files or {}, deadline)
            finally:
                self._catalog.forget(model)

        await self._one_by_one(load)

    async def unload(
        self,
        model: str,
        *,
        unload_dependents: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Unload a model, on one endpoint after the other.

        Args:
            model: The model's name.
            unload_dependents: Whether the models of an ensemble go with it.
            wait: Whether to wait until it is gone; the server itself answers before (#4844). A
                model whose process died is never gone: pass ``False`` and load it.
            timeout_s: Seconds this may take.

        Raises:
            ControlRefusedError: The server was not started with explicit model control.
            DeadlineExceededError: It was not gone in time; requests may still be at work in it.
        """
        deadline = self._deadline(timeout_s)

        async def unload(control: Control) -> None:
            try:
                await control.unload(model, deadline, dependents=unload_dependents)
                if wait:
                    await self._wait_until_gone(control, model, deadline)
            finally:
                self._catalog.forget(model)

        await self._one_by_one(unload)

    async def _one_by_one(self, change: Callable[[Control], Awaitable[None]]) -> None:
        done: list[str] = []
        for target, control in self._controls().items():
            try:
                await change(control)
            except TritonError as error:
                if done:
                    error.message += f" (it was done on {', '.join(done)})"
                raise
            done.append(target)

    async def _wait_until_gone(self, control: Control, model: str, deadline: Deadline) -> None:
        async def check() -> None:
            states = {entry.state for entry in await control.index(deadline) if entry.name == model}
            left = states - {"", "UNAVAILABLE"}
            if left:
                raise ModelNotReadyError(
                    f"model {model!r} at {control.target} is {', '.join(sorted(left))}",
                    code="UNAVAILABLE",
                    details=", ".join(sorted(left)),
                    model=model,
                    endpoint=control.target,
                )

        await _repeat(check, deadline, f"model {model!r} was not unloaded")


async def _ready(control: Control, model: str | None, version: str, deadline: Deadline) -> bool:
    if model is None:
        return await control.ready(deadline)
    return await control.model_ready(model, version, deadline)


def _json(model: str, config: Mapping[str, object]) -> str:
    try:
        return json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"model {model!r}: its config cannot be written as JSON: {error}", model=model
        ) from error


async def _check_known(control: Control, model: str, deadline: Deadline) -> None:
    """Raise if waiting is in vain, because the repositories have no model of that name."""
    names = {entry.name for entry in await control.index(deadline)}
    if model not in names:
        raise ModelNotFoundError(
            f"{control.target} has no model {model!r}, only: {', '.join(sorted(names)) or 'none'}",
            code="NOT_FOUND",
            details="not in the repository index",
            model=model,
            endpoint=control.target,
        )


async def _repeat(check: Callable[[], Awaitable[None]], deadline: Deadline, failure: str) -> None:
    """Repeat a check with growing pauses until it stops raising what waiting can mend."""
    # Imported late: waiting is rare, and ``import tritonasync`` should cost little.
    from tenacity import (  # noqa: PLC0415 - see above
        AsyncRetrying,
        retry_if_exception,
        stop_before_delay,
        wait_random_exponential,
    )

    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, TritonError) and error.retriable),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_before_delay(deadline.remaining()),
        reraise=True,
    )
    waits_for = ""  # what was seen last, should the time run out within the next look

    async def look() -> None:
        nonlocal waits_for
        try:
            await check()
        except TritonError as error:
            if error.retriable:
                waits_for = str(error)
            raise

    try:
        await retrying(look)
    except TritonError as error:
        late = isinstance(error, DeadlineExceededError)
        if not (waits_for if late else error.retriable):
            raise
        raise DeadlineExceededError(
            f"{failure} within {deadline.timeout_s:g} s: {waits_for}",
            stage="server",
            timeout_s=deadline.timeout_s,
            model=error.model,
            endpoint=error.endpoint,
        ) from error
