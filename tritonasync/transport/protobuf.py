"""One protobuf call of Triton's service: the request serialised, the answer parsed.

Owns: that an answer which is no such message is named as one. Refuses to know: what is asked
(``control`` and ``regions`` do, and let no message out).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final, cast

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ProtocolError, Stage
from tritonasync.transport.endpoint import Endpoint

# The generated module makes its classes at import and carries no types: seen as a plain module its
# members are Any.
pb: Final = cast("ModuleType", service_pb2)


async def ask(
    endpoint: Endpoint,
    method: str,
    request: Any,  # noqa: ANN401 - protobuf messages carry no types
    deadline: Deadline,
    *,
    model: str | None = None,
    stage: Stage = "server",
    repeatable: bool = True,
) -> Any:  # noqa: ANN401
    """Send a protobuf message and parse the answer; a question may always be asked again.

    Raises as :meth:`Endpoint.exchange` does.

    Raises:
        ProtocolError: The answer is not what the method answers with.
    """
    answer = await endpoint.exchange(
        method,
        request.SerializeToString(),
        deadline,
        stage=stage,
        model=model,
        repeatable=repeatable,
    )
    kind = getattr(pb, f"{method}Response")
    try:
        return kind.FromString(answer)
    except DecodeError as error:
        raise ProtocolError(
            f"{endpoint.target}: the answer to {method} is no {kind.__name__}",
            model=model,
            endpoint=endpoint.target,
        ) from error
