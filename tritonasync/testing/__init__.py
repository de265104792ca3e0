"""pytest support."""
