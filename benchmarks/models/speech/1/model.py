"""Answers INPUT0 with 3 copies of it as OUTPUT0, one response each, with a break after each."""

import time

import triton_python_backend_utils as pb_utils

RESPONSES = 3
BREAK_S = 0.002
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        sender = request.get_response_sender()
        for left in reversed(range(RESPONSES)):
            response = pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)])
            sender.send(response, flags=0 if left else FINAL)
            if left:
                time.sleep(BREAK_S)
