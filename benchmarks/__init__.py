"""Measurements against the stock client, side by side in one run: ``nox -s bench``."""
