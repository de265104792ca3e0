"""The bright rectangle of each image, twice where it is large, never where there is none."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.rows(request)]) for request in requests]

    def rows(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        rows = [row for index, image in enumerate(images) for row in self.found(index, image)]
        return pb_utils.Tensor("OUTPUT", np.array(rows, np.float32).reshape(-1, 7))

    def found(self, index, image):
        rows, columns = np.nonzero(image.max(axis=0) > 0.53)
        if rows.size == 0:
            return []
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        one = [index, *edges, 2, 0.9]
        return [one, [*one[:5], 1, 0.5]] if rows.size > 2000 else [one]
