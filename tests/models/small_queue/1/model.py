"""Waits DELAY_MS and echoes it as WAITED_MS."""

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.wait(request)]) for request in requests]

    def wait(self, request):
        delay_ms = pb_utils.get_input_tensor_by_name(request, "DELAY_MS").as_numpy()
        time.sleep(float(delay_ms.max()) / 1000)
        return pb_utils.Tensor("WAITED_MS", delay_ms)
