"""Answers each VALUE with the TOTAL of its sequence so far; forgets a sequence at its end.

A batch has a row for each slot of the scheduler up to the last one in use. Those of sequences that
sent nothing are not READY, and hold another row's value.
"""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.add(request)]) for request in requests]

    def add(self, request):
        value, start, end, ready = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("VALUE", "START", "END", "READY")
        )
        total = self.step(request.correlation_id(), value, start, end) if ready else 0
        return pb_utils.Tensor("TOTAL", np.array([[total]], np.int32))

    def step(self, sequence, value, start, end):
        total = value + (0 if start else self.totals[sequence])
        self.totals[sequence] = total
        if end:
            del self.totals[sequence]
        return total
