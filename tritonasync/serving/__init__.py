"""A real tritonserver for development, tests and demos: no Docker, no GPU."""

from tritonasync.serving.embedded import EmbeddedTriton
from tritonasync.serving.paths import TritonRuntime
from tritonasync.serving.runtime import cache_folder, ensure_runtime, locate_runtime

__all__ = ["EmbeddedTriton", "TritonRuntime", "cache_folder", "ensure_runtime", "locate_runtime"]
