"""gRPC: channels, calls and their safety rules, signatures and administration of a server."""
