"""Answers a request with INDEX 0, 1, ... COUNT - 1, one response each; raises below zero."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        sender = request.get_response_sender()
        count = int(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0])
        if count < 0:
            error = pb_utils.TritonError(f"negative count {count}")
            sender.send(pb_utils.InferenceResponse([], error))
        for index in range(count):
            tensor = pb_utils.Tensor("INDEX", np.array([index], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
