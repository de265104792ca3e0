"""A pool that lives as long as a web application does.

Owns: opening it in the server's event loop, waiting until models are ready, the application's own
lifespan within, closing; the handles that requests are given. Refuses to know: frameworks (a
lifespan is the same to all three: called with the application, it gives an async context manager).

Invariant: the pool is open before the application's own lifespan begins and until it has ended, and
it is closed however that went.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, TypeAlias, TypeVar, cast

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ConfigurationError, PoolClosedError, TritonError
from tritonasync.pool import TritonPool

_H = TypeVar("_H")

Lifespan: TypeAlias = Callable[..., AbstractAsyncContextManager[object]]
"""What a framework calls with the application: ``@asynccontextmanager async def …(app)``."""

STATE: Final = "triton"
"""The name that the pool has in the application's ``state``."""


class TritonLifespan:
    """Opens a pool when a web application starts, closes it when that ends, and hands out handles.

    ::

        triton = TritonLifespan(lambda: TritonPool("localhost:8001"), ready=["digits"])
        app = FastAPI(lifespan=triton)  # Starlette(lifespan=triton), Litestar(lifespan=[triton])

    While it is open, the pool is ``triton.pool``, and ``app.state.triton``.

    Args:
        pool: A function that makes the pool, called each time the application starts; or a pool
            that was not opened yet, for an application that starts once. (Tests mostly start it
            again and again.)
        ready: Models to wait for before the application serves; ``True`` to wait for the server
            alone.
        ready_timeout_s: Seconds to wait for all of them.
        then: The application's own lifespan, which runs while the pool is open. What it yields
            becomes the state of requests, as without this class.

    Raises:
        ConfigurationError: An argument makes no sense.
    """

    def __init__(
        self,
        pool: TritonPool | Callable[[], TritonPool],
        *,
        ready: bool | Iterable[str] = False,
        ready_timeout_s: float = 60.0,
        then: Lifespan | None = None,
    ) -> None:
        if isinstance(ready, str):
            raise ConfigurationError(f"ready: expected a list of models, as in [{ready!r}]")
        Deadline.after(ready_timeout_s, name="ready_timeout_s")  # refuses what is no duration
        self._make = pool
        # To the server, None is the question whether it is ready as a whole.
        self._awaited: tuple[str | None, ...] = (
            (None,) * ready if isinstance(ready, bool) else tuple(ready)
        )
        self._ready_timeout_s = ready_timeout_s
        self._then = then
        self._pool: TritonPool | None = None
        self._entered = False

    @property
    def pool(self) -> TritonPool:
        """The open pool.

        Raises:
            PoolClosedError: The application has not started, or has ended.
        """
        if self._pool is None:
            raise PoolClosedError(
                "the application's lifespan has not begun or is over, so there is no pool: give "
                "this object to the application as its lifespan (the outermost: those of mounted "
                "applications are not run), and serve it with one that runs lifespans (uvicorn "
                "does; httpx.ASGITransport does not)"
            )
        return self._pool

    # --- the application's start and end ---

    def __call__(self, app: object) -> AbstractAsyncContextManager[None]:
        """Return what a framework enters when an application starts, and exits when it ends.

        Entering it raises ``ConfigurationError`` if it is in use by a running application,
        ``PoolClosedError`` if the pool that was given was opened before, and what
        :meth:`Admin.wait_until_ready` raises if a model is not ready in time.
        """
        # Frameworks want to be told either that there is a state or that there is none.
        return cast("AbstractAsyncContextManager[None]", self._run(app))

    @asynccontextmanager
    async def _run(self, app: object) -> AsyncGenerator[object, None]:
        if self._entered:
            raise ConfigurationError(
                "this lifespan is that of an application which is running: make one for each"
            )
        self._entered = True
        async with AsyncExitStack() as stack:
            stack.callback(self._leave)
            pool = self._make if isinstance(self._make, TritonPool) else self._make()
            await stack.enter_async_context(pool)
            await self._wait_until_ready(pool)
            self._pool = pool
            stack.callback(self._withdraw, getattr(app, "state", None))
            self._publish(getattr(app, "state", None), pool)
            yield None if self._then is None else await stack.enter_async_context(self._then(app))

    async def _wait_until_ready(self, pool: TritonPool) -> None:
        deadline = Deadline.after(self._ready_timeout_s)
        for model in self._awaited:
            await pool.admin.wait_until_ready(model, timeout_s=_left_s(deadline))

    def _publish(self, state: object, pool: TritonPool) -> None:
        if state is not None:
            setattr(state, STATE, pool)

    def _leave(self) -> None:
        self._entered = False

    def _withdraw(self, state: object) -> None:
        self._pool = None
        if hasattr(state, STATE):
            delattr(state, STATE)

    # --- for requests ---

    def provide(self, make: Callable[[TritonPool], _H]) -> Callable[[], Awaitable[_H]]:
        """Return a dependency: a function without arguments that gives a handle.

        ::

            digits = triton.provide(lambda pool: pool.classifier("digits"))

            @app.post("/digits")  # FastAPI
            async def classify(digits: Annotated[Classifier, Depends(digits)]) -> …: …

            Litestar(dependencies={"digits": Provide(digits)})

            digits = await digits()  # Starlette, or anywhere

        The handle is made once for each start of the application. Asking for it raises
        ``PoolClosedError`` when the application is not running, and what ``make`` raises.

        Args:
            make: Makes the handle of the open pool.
        """
        made: list[tuple[TritonPool, _H]] = []

        # Async, since a plain function would be called in a thread by FastAPI. Without annotations,
        # since frameworks resolve them, and check results against them.
        async def provided():  # type: ignore[no-untyped-def]  # noqa: ANN202
            pool = self.pool
            if not made or made[0][0] is not pool:
                made[:] = [(pool, make(pool))]
            return made[0][1]

        return provided

    def live(self) -> bool:
        """Return whether the pool is open. It does not depend on the server: that may be away."""
        return self._pool is not None

    async def ready(self, *models: str, timeout_s: float = 2.0) -> bool:
        """Return whether requests can be served: pool open, server and models ready.

        Args:
            *models: Models asked for; none for those that the application waited for.
            timeout_s: Seconds this may take; when they are over, it is not ready.

        Raises:
            ConfigurationError: ``timeout_s`` is no duration. Nothing is raised otherwise.
        """
        deadline = Deadline.after(timeout_s)
        try:
            for model in models or self._awaited or (None,):
                if not await self.pool.admin.ready(model, timeout_s=_left_s(deadline)):
                    return False
        except TritonError:
            return False
        return True


def _left_s(deadline: Deadline) -> float:
    return max(deadline.remaining(), 0.0)
