"""Answers how many rows INPUT0 has."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.count(request)]) for request in requests]

    def count(self, request):
        rows = len(pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())
        return pb_utils.Tensor("ROWS", np.array([rows], np.int64))
