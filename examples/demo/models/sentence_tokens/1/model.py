"""Turns tokens into vectors, by the ONNX file of the model `sentences` beside this one."""

from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        network = Path(args["model_repository"]).parent / "sentences" / "1" / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        # Threads that wait in a loop for work take the cores from the server: half the rate.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            network, options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.embedding(request)]) for request in requests]

    def embedding(self, request):
        feed = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("input_ids", "attention_mask")
        }
        return pb_utils.Tensor("EMBEDDING", self.session.run(None, feed)[0])
