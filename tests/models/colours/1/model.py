"""Scores of an image: the mean of each colour, then the highest and the lowest value."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        ends = [images.max(axis=(1, 2, 3)), images.min(axis=(1, 2, 3))]
        scores = np.concatenate([images.mean(axis=(1, 2)), np.stack(ends, axis=1)], axis=1)
        scores = scores.astype(np.float32)
        outputs = {
            "NAMES": scores.astype(str).astype(object),
            "SCORES": scores,
            "TINTS": images.mean(axis=2),
        }
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in wanted])
