"""What only a GPU can prove, in the order in which one thing rests on another: see docs/gpu.md.

1 two processes share memory, 2 regions and streams, 3 a server, 4 the end of servers and clients.
"""
