"""Web backends: a pool in FastAPI, Starlette, Litestar, or any other ASGI application.

Everything public is in :mod:`tritonasync.integrations.asgi`.
"""
