"""Many items, and several models: maps and pipelines."""
