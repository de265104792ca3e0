"""The asynchronous, high-throughput SDK for NVIDIA Triton Inference Server."""

__version__ = "0.1.0"
