"""tritonclient's ``stream_infer``: all calls on one bidirectional stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import tritonclient.grpc.aio as grpcclient

from benchmarks.clients.base import AsyncClient
from benchmarks.clients.data import Array
from benchmarks.clients.responses import Ask
from benchmarks.clients.rounds import Call
from benchmarks.workloads import Workload


class Stream(AsyncClient):
    """One stream; answers find their callers by the request's id."""

    packages = ("tritonclient", "grpcio", "protobuf", "numpy")

    async def open(self, url: str) -> None:
        """Open the stream."""
        self.client = grpcclient.InferenceServerClient(url)
        self.requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.reading_many: dict[str, asyncio.Queue[Any]] = {}
        self.ids = itertools.count()
        self.reading = asyncio.create_task(self._read())

    async def aclose(self) -> None:
        """Close our half, read the stream to its end, close the channel.

        A stream that is cancelled with requests in flight kills a server (seen on Triton 2.51).
        """
        self.requests.put_nowait(None)
        await self.reading
        await self.client.close()

    async def caller(self, workload: Workload, item: Array) -> Call:
        """Return a call that puts a request on the stream and awaits its answer."""
        batch = item[None] if workload.rows is None else item

        async def call() -> Array:
            request = self._request(workload, batch)
            answered = asyncio.get_running_loop().create_future()
            self.waiting[request["request_id"]] = answered
            self.requests.put_nowait(request)
            answer: Array = (await answered).as_numpy("OUTPUT0")
            return answer

        return call

    async def reader(self, workload: Workload, item: Array) -> Ask:
        """Return what puts a request on the stream and reads from a queue what comes of it."""
        batch = item[None]

        async def ask() -> AsyncIterator[Array]:
            request = self._request(workload, batch)
            request["enable_empty_final_response"] = True
            came = self.reading_many[request["request_id"]] = asyncio.Queue()
            self.requests.put_nowait(request)
            while (result := await came.get()) is not None:
                if isinstance(result, Exception):
                    raise result
                yield result.as_numpy("OUTPUT0")

        return ask

    def _request(self, workload: Workload, batch: Array) -> dict[str, Any]:
        tensor = grpcclient.InferInput("INPUT0", list(batch.shape), workload.datatype)
        tensor.set_data_from_numpy(batch)
        identity = str(next(self.ids))
        return {"model_name": workload.model, "inputs": [tensor], "request_id": identity}

    async def _send(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self.requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for result, error in self.client.stream_infer(self._send()):
                if error is not None:  # it does not say whose
                    self._fail(error)
                    continue
                response = result.get_response()
                answered = self.waiting.pop(response.id, None)
                if answered is not None:
                    answered.set_result(result)
                else:
                    self._hand_over(result, response)
        except Exception as error:  # noqa: BLE001 - each waiter is told
            self._fail(error)

    def _hand_over(self, result: Any, response: Any) -> None:
        """Give one of many responses to its reader, and the word that there are no more."""
        came = self.reading_many[response.id]
        if response.outputs:
            came.put_nowait(result)
        if response.parameters["triton_final_response"].bool_param:
            del self.reading_many[response.id]
            came.put_nowait(None)

    def _fail(self, error: Exception) -> None:
        while self.waiting:
            _, waiter = self.waiting.popitem()
            waiter.set_exception(error)
        while self.reading_many:
            _, came = self.reading_many.popitem()
            came.put_nowait(error)
