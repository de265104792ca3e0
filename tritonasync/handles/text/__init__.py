"""Texts on their way into a model: tokens, rows of like lengths, what becomes of the answers."""
