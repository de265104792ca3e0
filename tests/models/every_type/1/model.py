"""Echoes each input IN_<type> that a request has as OUT_<type>."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([self.echo(tensor) for tensor in request.inputs()])
            for request in requests
        ]

    def echo(self, tensor):
        name = tensor.name().replace("IN_", "OUT_")
        if name == "OUT_BF16":  # numpy has no such type; a DLPack capsule carries it
            return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())
        return pb_utils.Tensor(name, tensor.as_numpy())
