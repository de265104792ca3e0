"""Shared memory: regions, slots in them, and who has which. Never talks to a server."""
