"""Three real models behind a real Triton, one command: ``python -m examples.demo``."""
