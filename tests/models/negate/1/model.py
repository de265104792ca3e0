"""Negates INPUT0 after DELAY_MS: an answer that is no echo cannot be what was sent by mistake."""

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.negate(request)]) for request in requests]

    def negate(self, request):
        delay_ms = pb_utils.get_input_tensor_by_name(request, "DELAY_MS")
        if delay_ms is not None:
            time.sleep(float(delay_ms.as_numpy().max()) / 1000)
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        return pb_utils.Tensor("OUTPUT0", -values.as_numpy())
