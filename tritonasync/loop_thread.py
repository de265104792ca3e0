"""An event loop in a thread of its own, with a pool in it from opening to closing.

Owns: the thread, the way of a call there and back, the end. Refuses to know: what is called.

Invariants: nobody waits for a loop that has ended; a caller that leaves early (Ctrl-C) is a caller
cancelled, and its request goes on; the loop ends after the pool was closed, however the program
ends.

Calls go through anyio's ``BlockingPortal``. The thread is not its ``start_blocking_portal``, whose
generator is to be left in order: an unclosed one holds up the interpreter's exit (anyio 4.4), a
dropped one is joined by the garbage collector, and one whose closing Ctrl-C ended by either.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Final, Literal, ParamSpec, Protocol, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from tritonasync.core.errors import PoolClosedError, WrongContextError

_P = ParamSpec("_P")
_R = TypeVar("_R")

_UNOPENED: Final = "the pool is not open: use `with TritonPool.blocking(...)` or pool.open()"
_CLOSED: Final = "the pool is closed"


class Living(Protocol):
    """What is opened and closed in an event loop."""

    async def open(self) -> object:
        """Open it in the running event loop."""

    async def aclose(self) -> None:
        """Close it in the same loop."""


class LoopThread:
    """A pool and its event loop, in a thread of their own from opening to closing.

    Args:
        pool: The pool, not yet open.
    """

    def __init__(self, pool: Living) -> None:
        self.pool = pool
        self.state: Literal["new", "open", "closed"] = "new"
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._portal: BlockingPortal | None = None
        self._ended = threading.Event()
        self._waiting: set[Future[object]] = set()
        self._failure: BaseException | None = None

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that made the pool."""
        return os.getpid() != self._pid

    def open(self) -> None:
        """Start the thread and open the pool there. Raises what opening raises."""
        self._check_context()
        opened: Future[None] = Future()
        with self._lock:
            if self.state != "new":
                raise PoolClosedError(f"the pool is {self.state} already; make a new one")
            # A daemon: other threads are joined at the interpreter's exit before ``_exit`` is run.
            thread = threading.Thread(
                target=self._run, args=(opened,), name="tritonasync", daemon=True
            )
            thread.start()
            self._thread, self.state = thread, "open"
        try:
            opened.result()
        except BaseException:
            self.leave()
            raise
        finally:
            del opened  # or the error, its traceback and this frame would hold one another

    def call(
        self,
        function: Callable[_P, Coroutine[object, object, _R]],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Return what ``function`` returns, awaited in the loop (context variables come along).

        Raises:
            PoolClosedError: The pool is not open, or was closed meanwhile.
            WrongContextError: This is the loop's own thread, or a forked child.
        """
        self._check_context()
        answer, error = self._wait(self._submit(partial(function, *args, **kwargs)))
        if error is None:
            return cast("_R", answer)
        try:
            raise error
        finally:
            del error  # or it, its traceback and this frame would hold one another

    def _submit(
        self, function: Callable[[], Coroutine[object, object, _R]]
    ) -> Future[tuple[_R | None, Exception | None]]:
        portal = self._portal
        if portal is None:
            raise PoolClosedError(_UNOPENED if self.state == "new" else _CLOSED)
        try:
            return portal.start_task_soon(_outcome, function)
        except RuntimeError:  # it takes nothing any more, or the loop was closed just now
            raise PoolClosedError(_CLOSED) from None

    def _wait(self, future: Future[_R]) -> _R:
        entry = cast("Future[object]", future)
        self._waiting.add(entry)
        try:
            if self._ended.is_set():  # if not, the thread is still to look at who waits
                _fail(entry)
            return future.result()
        except CancelledError:
            raise PoolClosedError("the pool was closed while the call was out") from None
        finally:
            self._waiting.discard(entry)
            if not future.done():
                future.cancel()  # Ctrl-C
            del future, entry  # or the error, its traceback and this frame would hold one another

    def leave(self) -> None:
        """Have the pool closed and the thread end, without waiting. Any thread may call this."""
        self.state = "closed"
        portal = self._portal
        if portal is not None and not self.forked:
            with suppress(RuntimeError):  # it has ended
                portal.start_task_soon(portal.stop)

    def close(self) -> None:
        """Close the pool and wait until the thread has ended. Raises what closing raises."""
        self._check_context()
        with self._lock:
            self.leave()
        if self._thread is None:
            return
        try:
            self._ended.wait()
            self._thread.join()
        except BaseException:  # Ctrl-C: then the interpreter's exit should not wait either
            atexit.unregister(self._exit)
            raise
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def warn_unclosed(self, source: object = None) -> None:
        """Tell whoever asked to be told that the pool was left open."""
        warnings.warn(
            f"unclosed <BlockingPool of {self.pool!r}>: use `with`, or call its close()",
            ResourceWarning,
            source=source,
            stacklevel=3,
        )

    def _check_context(self) -> None:
        if self.forked:
            raise WrongContextError(
                "the pool was made before this process was forked, and its thread is not in the "
                "child: make a pool of its own there, or start the child by 'spawn'"
            )
        if self._thread is not None and self._thread.ident == threading.get_ident():
            raise WrongContextError(
                "this is the thread of the pool's own event loop, which would wait for itself: "
                "what runs there, such as a function given as `headers`, cannot use the pool"
            )

    def _exit(self) -> None:
        """Close the pool at the interpreter's exit; cutting calls short can crash the server."""
        if self.forked:
            return
        unclosed = self.state == "open"
        try:
            if unclosed:
                self.warn_unclosed()
        finally:
            self.leave()
            self._ended.wait()

    # --- in the thread ---

    def _run(self, opened: Future[None]) -> None:
        atexit.register(self._exit)
        try:
            anyio.run(self._live, opened)
        except BaseException as error:  # noqa: BLE001 - close() raises it
            self._failure = error
        finally:
            self._ended.set()
            for future in list(self._waiting):
                _fail(future)
            atexit.unregister(self._exit)

    async def _live(self, opened: Future[None]) -> None:
        try:
            await self.pool.open()
        except BaseException as error:  # noqa: BLE001 - open() raises it
            opened.set_exception(error)
            return
        async with BlockingPortal() as portal:  # which waits for the calls that are out
            self._portal = portal
            opened.set_result(None)
            del opened
            if self.state != "closed":  # it may have been left before there was a portal to tell
                await portal.sleep_until_stopped()
            try:
                await self.pool.aclose()
            except Exception as error:  # noqa: BLE001 - close() raises it, and not in a group
                self._failure = error
            await portal.stop(cancel_remaining=True)  # what the pool's closing did not end


async def _outcome(
    function: Callable[[], Coroutine[object, object, _R]],
) -> tuple[_R | None, Exception | None]:
    """Return the error instead of raising it: a portal's frames would hold on to what is raised."""
    try:
        return await function(), None
    except Exception as error:  # noqa: BLE001 - raised in the caller's thread
        return None, error


def _fail(future: Future[object]) -> None:
    """Let a caller go whose call was submitted when the loop had stopped looking."""
    if not future.done():
        future.set_exception(PoolClosedError(_CLOSED))
