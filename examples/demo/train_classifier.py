"""Train the classifier of digits: ``python -m examples.demo.train_classifier``.

Needs torch 2.13.0 (CPU) and onnx; takes about fifteen seconds. Writes the ONNX file, which is part
of the repository, so that the demo itself needs neither.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.demo import digits

FILE = Path(__file__).parent / "models" / "digits" / "1" / "model.onnx"
EPOCHS = 40
ROWS = 64


def network() -> nn.Sequential:
    """Return the untrained network: float32 ``[N, 1, 8, 8]`` in 0..1 to logits ``[N, 10]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def shifted(images: Tensor) -> Tensor:
    """Move each image by at most one pixel each way, so that the exact place does not matter."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack(
        [one[:, y : y + 8, x : x + 8] for one, (y, x) in zip(padded, moves, strict=True)]
    )


def train(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    steps = EPOCHS * -(-len(images) // ROWS)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(ROWS):
            loss = nn.functional.cross_entropy(net(shifted(images[rows])), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True)
    seen, unseen = digits.training(), digits.held_out()
    net = network()
    train(net, torch.from_numpy(seen.images[:, None]), torch.from_numpy(seen.labels))
    net.eval()
    with torch.no_grad():
        answers = net(torch.from_numpy(unseen.images[:, None])).argmax(1).numpy()
    print(f"accuracy on held-out digits: {np.mean(answers == unseen.labels):.4f}")
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        str(FILE),
        input_names=["IMAGE"],
        output_names=["LOGITS"],
        dynamic_axes={"IMAGE": {0: "rows"}, "LOGITS": {0: "rows"}},
        dynamo=False,
    )


if __name__ == "__main__":
    main()
