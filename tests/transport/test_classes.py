"""What a server is sent to have it name classes, and what it may answer."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonasync.core.deadline import Deadline
from tritonasync.core.errors import ProtocolError
from tritonasync.core.values import Call, ClassQuestion, InputTensor
from tritonasync.transport.classes import ask_labels
from tritonasync.wire.strings import encode_strings

pytestmark = pytest.mark.anyio


class Endpoint:
    """Keeps what it is asked and answers with an output of this form."""

    target = "a:1"

    def __init__(self, *entries, name="SCORES", datatype="BYTES"):
        content = encode_strings(entries, model="pets", name=name)
        self.answer = pb.ModelInferResponse(
            model_name="pets",
            outputs=[{"name": name, "datatype": datatype, "shape": [1, len(entries)]}],
            raw_output_contents=[bytes(content) if datatype == "BYTES" else b"\0" * 4],
        )
        self.options = {}

    async def exchange(self, method, message, deadline, **options):
        assert method == "ModelInfer"
        self.request = pb.ModelInferRequest.FromString(bytes(message))
        self.deadline, self.options = deadline, options
        return self.answer.SerializeToString()


def question(width=3, **options):
    row = np.arange(width, dtype=np.float32)[None]
    tensor = InputTensor("X", "FP32", row.shape, (row,))
    deadline = Deadline.after(5)
    call = Call("pets", "2", (tensor,), 1, outputs=("SCORES",), deadline=deadline, **options)
    return ClassQuestion(call, "SCORES", 3)


@pytest.mark.parametrize("width", [3, 1 << 19])  # the larger is written in a worker thread
async def test_a_row_is_sent_with_as_many_classes_as_there_are(width):
    endpoint = Endpoint(b"0.5:2:cat", b"0.5:0:ant", b"0:1")
    asked = question(width)
    assert await ask_labels(endpoint, asked) == ("ant", "", "cat")
    request = endpoint.request
    assert (request.model_name, request.model_version) == ("pets", "2")
    assert [tensor.name for tensor in request.inputs] == ["X"]
    assert request.raw_input_contents[0] == np.arange(width, dtype=np.float32).tobytes()
    (output,) = request.outputs
    assert output.name == "SCORES"
    assert output.parameters["classification"].int64_param == 3
    assert endpoint.deadline is asked.call.deadline
    assert endpoint.options == {"stage": "metadata", "model": "pets", "repeatable": True}


@pytest.mark.parametrize("answer", [{"name": "OTHER"}, {"datatype": "FP32"}])
async def test_an_answer_without_strings_of_that_output_is_an_error(answer):
    with pytest.raises(ProtocolError, match="model 'pets', output 'SCORES': expected classes as"):
        await ask_labels(Endpoint(b"0:0:ant", **answer), question())
