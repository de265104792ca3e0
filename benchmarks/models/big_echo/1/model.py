"""Echoes INPUT0 as OUTPUT0; 602,112 bytes a row, 19 MB a full batch."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.echo(request)]) for request in requests]

    def echo(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        return pb_utils.Tensor("OUTPUT0", values.as_numpy())
