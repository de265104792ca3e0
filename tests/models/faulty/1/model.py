"""Echoes INPUT0; raises if any value of the batch is negative."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.echo(request)]) for request in requests]

    def echo(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        if (values < 0).any():
            raise ValueError(f"negative value {values.min():g}")
        return pb_utils.Tensor("OUTPUT0", values)
