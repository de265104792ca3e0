"""Answers each VALUE with the TOTAL of its sequence so far, and with the ID of that sequence."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.answer(request)) for request in requests]

    def answer(self, request):
        value, start, end, name = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("VALUE", "START", "END", "CORRID")
        )
        total = value + (0 if start else self.totals[name])
        self.totals[name] = total
        if end:
            del self.totals[name]
        return [
            pb_utils.Tensor("TOTAL", np.array([total], np.int32)),
            pb_utils.Tensor("ID", np.array([name], np.object_)),
        ]
