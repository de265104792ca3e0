"""Answers each VALUE with the TOTAL of its sequence so far; a request may come without VALUE.

Rows that are not READY belong to slots whose sequences sent nothing.
"""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.add(request)]) for request in requests]

    def add(self, request):
        start, end, ready = (self.read(request, name) for name in ("START", "END", "READY"))
        value = self.read(request, "VALUE")
        total = self.step(request.correlation_id(), value, start, end) if ready else 0
        return pb_utils.Tensor("TOTAL", np.array([[total]], np.int32))

    def read(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return 0 if tensor is None else tensor.as_numpy().item()

    def step(self, sequence, value, start, end):
        total = value + (0 if start else self.totals[sequence])
        self.totals[sequence] = total
        if end:
            del self.totals[sequence]
        return total
