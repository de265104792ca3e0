"""Triton's generated messages, with types: the one place where ``service_pb2`` enters the layer.

tritonclient's generated module carries no types. The classes below say what this layer reads and
writes of it; they exist for type checkers alone, and at run time :data:`pb` is the module itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableSequence
    from typing import Any

    from google.protobuf.message import Message

    class Parameter(Message):
        """``InferParameter``: one of bool, int64, uint64, double, string."""

        int64_param: int
        string_param: str

    class Placeable(Message):
        """``ModelInferRequest.InferInputTensor`` or ``InferRequestedOutputTensor``."""

        parameters: Mapping[str, Parameter]

    class Contents(Message):
        """``InferTensorContents``: the elements of a tensor in typed fields."""

    class Output(Message):
        """``ModelInferResponse.InferOutputTensor``."""

        name: str
        datatype: str
        shape: MutableSequence[int]
        contents: Contents

    class Repeated:
        """A repeated field of messages."""

        def add(self, **fields: Any) -> Placeable:  # noqa: ANN401 -- protobuf checks them
            """Append a message with these fields, and return it."""
            ...

    class Request(Message):
        """``ModelInferRequest``."""

        def __init__(self, *, model_name: str = "", model_version: str = "") -> None: ...

        parameters: Mapping[str, Parameter]
        inputs: Repeated
        outputs: Repeated

    class Response(Message):
        """``ModelInferResponse``."""

        model_name: str
        model_version: str
        parameters: Mapping[str, Parameter]
        outputs: MutableSequence[Output]

    class Messages:
        """The generated module."""

        ModelInferRequest: type[Request]
        ModelInferResponse: type[Response]


pb: Final = cast("Messages", service_pb2)
