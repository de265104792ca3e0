"""Messages of a stream that are read by what is known of others of their length."""

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonasync.wire import stream
from tritonasync.wire.stream import read_stream_response


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch):
    monkeypatch.setattr(stream, "_stream_layouts", {})


def message(name: str, value: int = 0, count: int = 1) -> bytes:
    made = pb.ModelStreamInferResponse()
    response = made.infer_response
    response.model_name, response.id = "m", name
    response.parameters["triton_final_response"].bool_param = False
    response.outputs.add(name="OUT", datatype="INT32", shape=[count])
    response.raw_output_contents.append(np.full(count, value, np.int32).tobytes())
    return made.SerializeToString()


def test_ids_and_elements_are_each_messages_own():
    for number in range(10, 20):
        response = read_stream_response(message(f"{number}", number))
        assert response.request_id == str(number)
        assert response.reply().outputs["OUT"].tolist() == [number]
    assert [len(known) for known in stream._stream_layouts.values()] == [1]


def test_an_id_of_letters_outside_ascii_is_read_the_long_way():
    assert read_stream_response(message("ab")).request_id == "ab"
    response = read_stream_response(message("é", 7))
    assert response.request_id == "é"
    assert response.reply().outputs["OUT"].tolist() == [7]


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(stream, "MAX_LAYOUTS", 3)
    for count in range(1, 20):
        assert read_stream_response(message("a", 1, count)).request_id == "a"
        assert len(stream._stream_layouts) <= 3
