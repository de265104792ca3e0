"""Bytes to values and back, sans-I/O: Triton's inference messages, its datatypes, its strings."""
