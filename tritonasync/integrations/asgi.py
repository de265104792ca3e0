"""A pool behind FastAPI, Starlette, Litestar, or any ASGI application.

Importing this module imports none of them. What is here:

- :class:`TritonLifespan`: the pool lives as long as the application does; hands out handles;
- :class:`TritonErrors`, :func:`exception_handlers`, :func:`litestar_exception_handlers`: errors of
  the SDK become HTTP answers, as :func:`error_response` says;
- :class:`CancelOnDisconnect`: a client that hangs up ends the work that is done for it;
- :class:`Health`: pages that say whether the application is alive and ready.
"""

from tritonasync.integrations.answers import Answer, error_response
from tritonasync.integrations.disconnect import CancelOnDisconnect
from tritonasync.integrations.failures import (
    TritonErrors,
    exception_handlers,
    litestar_exception_handlers,
)
from tritonasync.integrations.health import Health
from tritonasync.integrations.lifespan import TritonLifespan

__all__ = [
    "Answer",
    "CancelOnDisconnect",
    "Health",
    "TritonErrors",
    "TritonLifespan",
    "error_response",
    "exception_handlers",
    "litestar_exception_handlers",
]
