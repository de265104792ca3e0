"""Handles: what a user calls. Arrays, images and texts in; tensors down; typed results out."""
