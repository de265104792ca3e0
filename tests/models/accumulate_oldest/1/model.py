"""Answers each VALUE with the TOTAL of its sequence so far; raises below zero, and goes on.

With the strategy ``oldest``, a request is a row of its own: there are no rows that are not ready.
"""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value, start, end = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("VALUE", "START", "END")
        )
        if value < 0:
            error = pb_utils.TritonError(f"negative value {value}")
            return pb_utils.InferenceResponse([], error)
        total = self.step(request.correlation_id(), value, start, end)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOTAL", np.array([[total]], np.int32))])

    def step(self, sequence, value, start, end):
        total = value + (0 if start else self.totals[sequence])
        self.totals[sequence] = total
        if end:
            del self.totals[sequence]
        return total
