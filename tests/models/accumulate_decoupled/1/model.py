"""Answers a VALUE with that many responses, each one more than the TOTAL of its sequence before."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        value, start, end = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("VALUE", "START", "END")
        )
        sender, sequence = request.get_response_sender(), request.correlation_id()
        total = 0 if start else self.totals[sequence]
        for counted in range(total + 1, total + value + 1):
            tensor = pb_utils.Tensor("TOTAL", np.array([counted], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
        self.totals[sequence] = total + value
        if end:
            del self.totals[sequence]
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
