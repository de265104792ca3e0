"""Train the detector of digits in scenes: ``python -m examples.demo.train_detector``.

Needs torch 2.13.0 (CPU) and onnx; takes about four minutes on two free cores. Writes the ONNX file,
which is part of the repository, so that the demo itself needs neither.

The network sees the scene as a grid of 16 x 16 cells of eight pixels. Each cell gives one box, so
an answer has 256 of them, in YOLOv8's layout ``[4 + 10, 256]``: centre and size in pixels, then
the score of each class.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.demo import digits
from examples.demo.scenes import MOST_DIGITS, SIDE, Scene, scenes

FILE = Path(__file__).parent / "models" / "scenes" / "1" / "model.onnx"
SCENES = 6_000
EPOCHS = 5
ROWS = 32
STRIDE = 8  # pixels, of a cell
REACH = 6.0  # pixels: a cell this near to a digit's centre, both ways, is to find the digit
USUAL_SIDE = 20.0  # pixels, of a box
RARE = -5.0  # the first guess at a class score, as a logit: hardly any cell holds a given digit


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.change(features)


class Network(nn.Module):
    """float32 ``[N, 1, 128, 128]`` in 0..1 to boxes ``[N, 256, 4]`` and logits ``[N, 256, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(1, 16, stride=2),
            convolution(16, 32, stride=2),
            convolution(32, 32),
            convolution(32, 64, stride=2),
            *(Residual(64) for _ in range(4)),
            nn.Conv2d(64, 4 + 10, 1),
        )
        nn.init.constant_(self.layers[-1].bias[4:], RARE)
        self.register_buffer("cells", cell_centres())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.layers(images).flatten(2).transpose(1, 2)
        centres = self.cells + answers[..., :2] * STRIDE
        return torch.cat([centres, answers[..., 2:4].exp() * USUAL_SIDE], 2), answers[..., 4:]


class Served(nn.Module):
    """The network as Triton serves it: one output ``[N, 14, 256]`` in YOLOv8's layout."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        boxes, logits = self.network(images)
        return torch.cat([boxes, logits.sigmoid()], 2).transpose(1, 2)


def cell_centres() -> Tensor:
    """Return the centres of the cells in pixels, ``[256, 2]``: x and y, row by row."""
    along = (torch.arange(SIDE // STRIDE) + 0.5) * STRIDE
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], 2).flatten(0, 1)


def stacked(drawn: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, boxes (centre and size; far away where a scene has fewer) and labels."""
    images = np.stack([scene.image for scene in drawn])[:, None]
    boxes = np.full((len(drawn), MOST_DIGITS, 4), 1e6, np.float32)
    labels = np.zeros((len(drawn), MOST_DIGITS), np.int64)
    for row, scene in enumerate(drawn):
        low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
        boxes[row, : len(low)] = np.hstack([(low + high) / 2, high - low])
        labels[row, : len(low)] = scene.labels
    return torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(labels)


def loss_of(network: Network, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return the loss: the class scores of every cell, and the boxes of the cells in reach."""
    found, logits = network(images)
    offsets = (network.cells[None, :, None] - boxes[:, None, :, :2]).abs().amax(3)
    distance, nearest = offsets.min(2)
    row, cell = torch.nonzero(distance < REACH, as_tuple=True)
    digit = nearest[row, cell]
    wanted = torch.zeros_like(logits)
    wanted[row, cell, labels[row, digit]] = 1
    scores = binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(row)
    return scores + 2 * (1 - generalised_iou(found[row, cell], boxes[row, digit])).mean()


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """Return the overlap of pairs of boxes, less the emptiness of their hull (arXiv:1902.09630)."""
    low, high = one[:, :2] - one[:, 2:] / 2, one[:, :2] + one[:, 2:] / 2
    low2, high2 = other[:, :2] - other[:, 2:] / 2, other[:, :2] + other[:, 2:] / 2
    shared = (torch.min(high, high2) - torch.max(low, low2)).clamp(min=0).prod(1)
    union = one[:, 2:].prod(1) + other[:, 2:].prod(1) - shared
    hull = (torch.max(high, high2) - torch.min(low, low2)).prod(1)
    return shared / union - (hull - union) / hull


def train(network: Network, images: Tensor, boxes: Tensor, labels: Tensor) -> None:
    steps = EPOCHS * -(-len(images) // ROWS)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(images)).split(ROWS):
            loss = loss_of(network, images[rows] / 255, boxes[rows], labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(images):.3f}", flush=True)


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True)
    print(f"drawing {SCENES:,} scenes", flush=True)
    network = Network()
    train(network, *stacked(list(islice(scenes(digits.training(), seed=0), SCENES))))
    torch.onnx.export(
        Served(network).eval(),
        (torch.zeros(1, 1, SIDE, SIDE),),
        str(FILE),
        input_names=["IMAGE"],
        output_names=["BOXES"],
        dynamic_axes={"IMAGE": {0: "rows"}, "BOXES": {0: "rows"}},
        dynamo=False,
    )


if __name__ == "__main__":
    main()
