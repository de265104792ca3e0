"""The clients that are compared. Each runs in a process, and if need be an environment, of its own.

Whatever is imported here runs where tritonasync may be missing: the standard library and numpy,
and in each client's module that client's package.
"""
