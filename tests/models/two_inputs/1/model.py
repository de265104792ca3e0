"""SUM = A + B and DIFF = A - B, row by row."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(self.answer(request)) for request in requests]

    def answer(self, request):
        a = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
        b = pb_utils.get_input_tensor_by_name(request, "B").as_numpy().astype(a.dtype)
        return [pb_utils.Tensor("SUM", a + b), pb_utils.Tensor("DIFF", a - b)]
