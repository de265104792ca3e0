"""Text from a model to a browser while it is generated, as server-sent events."""
