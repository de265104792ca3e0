"""The bright rectangle of each image: class 2 of 5, in the outputs of every family."""

import numpy as np
import triton_python_backend_utils as pb_utils

KIND, SCORE, SIDE = 2, 0.9, 64


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        outputs = self.outputs(np.array([self.found(image) for image in images], np.float32))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, outputs[name]) for name in request.requested_output_names()]
        )

    def found(self, image):
        rows, columns = np.nonzero(image.max(axis=0) > 0.53)
        return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1

    def outputs(self, boxes):
        count = len(boxes)
        centres = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
        listed = np.zeros((count, 3, 4), np.float32)
        listed[:, 0] = boxes
        scores = np.zeros((count, 3), np.float32)
        scores[:, 0] = SCORE
        return {
            "YOLOV5": self.anchors(centres, [0.95], SCORE / 0.95),
            "YOLOV8": self.anchors(centres, [], SCORE).transpose(0, 2, 1).copy(),
            "END2END": np.dstack([listed, scores, np.full_like(scores, KIND)]).astype(np.float16),
            "num_dets": np.ones((count, 1), np.int32),
            "det_boxes": listed,
            "det_scores": scores,
            "det_classes": np.full((count, 3), KIND, np.int32),
            "num_detections": np.ones(count, np.float32),
            "detection_boxes": listed[..., [1, 0, 3, 2]] / SIDE,
            "detection_scores": scores,
            "detection_classes": np.full((count, 3), KIND + 1, np.float32),
            **self.queries(centres / SIDE),
        }

    def anchors(self, centres, objectness, score):
        """Two anchors of twelve are the object: one is a duplicate."""
        anchors = np.zeros((len(centres), 12, 4 + len(objectness) + 5), np.float32)
        for place in (4, 7):
            anchors[:, place, :4] = centres
            anchors[:, place, 4 : 4 + len(objectness)] = objectness
            anchors[:, place, 4 + len(objectness) + KIND] = score
        return anchors

    def queries(self, centres):
        boxes = np.full((len(centres), 4, 4), 0.5, np.float32)
        boxes[:, 1] = centres
        logits = np.zeros((len(centres), 4, 6), np.float32)
        logits[..., -1] = 9
        logits[:, 1] = [0, 0, np.log(SCORE / (1 - SCORE) * 5), 0, 0, 0]
        alone = np.full((len(centres), 4, 5), -9, np.float32)
        alone[:, 1, KIND] = np.log(SCORE / (1 - SCORE))
        return {"pred_boxes": boxes, "logits": logits, "SIGMOID_LOGITS": alone}
