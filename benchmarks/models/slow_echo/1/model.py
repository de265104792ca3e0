"""Echoes INPUT0 as OUTPUT0 after 10 ms, however many requests and rows it is given."""

import time

import triton_python_backend_utils as pb_utils

BATCH_S = 0.010


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(BATCH_S)
        return [pb_utils.InferenceResponse([self.echo(request)]) for request in requests]

    def echo(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        return pb_utils.Tensor("OUTPUT0", values.as_numpy())
