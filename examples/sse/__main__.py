"""Serve the site, with a small model behind it: ``python -m examples.sse [--port 8080]``."""

from __future__ import annotations

import argparse
import contextlib

import anyio

from examples.sse.site import Site
from tritonasync import TritonPool
from tritonasync.serving import EmbeddedTriton


async def main(port: int) -> None:
    """Run until Ctrl-C."""
    server = EmbeddedTriton("tests/models", model_control="explicit", load_models=["tokens"])
    async with server as triton, TritonPool(triton.grpc_url) as pool:
        generator = pool.generator("tokens", inputs={"MAX_TOKENS": 200, "DELAY_MS": 30})
        async with Site(generator).serve(port) as url:
            print(f"Open {url}; Ctrl-C ends it.")
            await anyio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="[%(default)s]")
    with contextlib.suppress(KeyboardInterrupt):
        anyio.run(main, parser.parse_args().port)
