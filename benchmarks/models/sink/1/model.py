"""Answers the first value of each row, so that 19 MB go up and next to nothing comes down."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.first(request)]) for request in requests]

    def first(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        return pb_utils.Tensor("OUTPUT0", values[:, 0, 0, :1].copy())
