"""What is read from a model's configuration of the sequences that it takes."""

from __future__ import annotations

import math

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from tritonasync.transport.control import _model_spec

CONTROL = model_config_pb2.ModelSequenceBatching.Control


def spec_of(**sequences):
    config = model_config_pb2.ModelConfig(name="net")
    if sequences:
        config.sequence_batching.CopyFrom(model_config_pb2.ModelSequenceBatching(**sequences))
    metadata = service_pb2.ModelMetadataResponse(name="net", platform="python")
    return _model_spec("", metadata, config, "a:1")


def controls(*kinds):
    """Control inputs of these kinds and datatypes."""
    made = [CONTROL(kind=kind, data_type=datatype) for kind, datatype in kinds]
    return [
        model_config_pb2.ModelSequenceBatching.ControlInput(name=f"C{index}", control=[control])
        for index, control in enumerate(made)
    ]


START = (CONTROL.CONTROL_SEQUENCE_START, model_config_pb2.TYPE_INVALID)


@pytest.mark.parametrize(
    ("kinds", "ids"),
    [
        ([], "any"),
        ([START], "any"),
        ([START, (CONTROL.CONTROL_SEQUENCE_CORRID, model_config_pb2.TYPE_STRING)], "string"),
        ([START, (CONTROL.CONTROL_SEQUENCE_CORRID, model_config_pb2.TYPE_UINT64)], "integer"),
        ([(CONTROL.CONTROL_SEQUENCE_END, model_config_pb2.TYPE_STRING)], "any"),
    ],
)
def test_the_control_of_the_id_says_what_ids_are_asked_for(kinds, ids):
    spec = spec_of(control_input=controls(*kinds), max_sequence_idle_microseconds=5)
    assert spec.stateful
    assert spec.sequence_ids == ids


@pytest.mark.parametrize(("told_us", "idle_s"), [(2_500_000, 2.5), (0, 1.0)])
def test_the_idle_time_is_a_second_where_it_is_left_out(told_us, idle_s):
    spec = spec_of(
        max_sequence_idle_microseconds=told_us,
        direct=model_config_pb2.ModelSequenceBatching.StrategyDirect(),
    )
    assert spec.sequence_idle_s == idle_s


def test_a_model_without_sequences_forgets_none():
    spec = spec_of()
    assert (spec.stateful, spec.sequence_ids, spec.sequence_idle_s) == (False, "any", math.inf)


@pytest.mark.parametrize(
    ("hint", "layout"), [("FORMAT_NONE", None), ("FORMAT_NHWC", "NHWC"), ("FORMAT_NCHW", "NCHW")]
)
def test_layouts_and_label_files_are_the_configurations(hint, layout):
    config = model_config_pb2.ModelConfig(
        name="net",
        input=[
            {"name": "X", "format": model_config_pb2.ModelInput.Format.Value(hint)},
            {"name": "HINT", "optional": True},
        ],
        output=[{"name": "Y", "label_filename": "labels.txt"}, {"name": "Z"}],
    )
    tensor = {"datatype": "FP32", "shape": [-1, 4]}
    metadata = service_pb2.ModelMetadataResponse(
        name="net",
        inputs=[{"name": name, **tensor} for name in ("X", "HINT", "NEW")],
        outputs=[{"name": name, **tensor} for name in ("Z", "Y", "NEW")],
    )
    spec = _model_spec("", metadata, config, "a:1")
    assert [tensor.layout for tensor in spec.inputs] == [layout, None, None]
    assert [tensor.optional for tensor in spec.inputs] == [False, True, False]
    assert [tensor.label_filename for tensor in spec.outputs] == ["", "labels.txt", ""]
