"""A server that knows regions of system shared memory, and a model that echoes ``IN`` as ``OUT``.

What it does beyond that is what a test wants: answer late, forget its regions, refuse them.
"""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2 as pb

from tests.transport.scripted import RefusalError, ScriptedServer, of_version

_SHM = Path("/dev/shm")
NOT_FOUND, INTERNAL = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL


class MemoryServer(ScriptedServer):
    """See the module.

    Attributes:
        regions: What is registered, by name.
        names: All names that were ever registered, in order.
        requests: The inference requests, parsed.
        refusal: What registering fails of, if it does.
        held: Requests that wait for :meth:`let_go`.
        output: What the model gives for its input.
    """

    def __init__(self) -> None:
        super().__init__(
            SystemSharedMemoryRegister=self._register,
            SystemSharedMemoryUnregister=self._unregister,
            SystemSharedMemoryStatus=self._status,
            CudaSharedMemoryStatus=self._no_cuda,
            ModelInfer=self._infer,
            ServerMetadata=of_version("2.51.0"),
        )
        self.regions: dict[str, mmap.mmap] = {}
        self.keys: dict[str, str] = {}
        self.names: list[str] = []
        self.requests: list[pb.ModelInferRequest] = []
        self.refusal: RefusalError | None = None
        self.failures: list[RefusalError] = []
        self.holding = False
        self.held: list[asyncio.Event] = []
        self.arrived = asyncio.Semaphore(0)
        self.output = lambda data: data
        self.shape_of = None
        self.output_name = "OUT"
        self.silent: set[str] = set()  # outputs that it has, and does not give
        self.datatype = "FP32"

    def restart(self) -> None:
        """Forget all regions, as another process would."""
        self.regions.clear()
        self.keys.clear()

    def let_go(self) -> None:
        """Answer what is held, in order."""
        held, self.held = self.held, []
        for event in held:
            event.set()

    async def _register(self, message: bytes) -> bytes:
        request = pb.SystemSharedMemoryRegisterRequest.FromString(message)
        if self.refusal is not None:
            raise self.refusal
        if request.name in self.regions:
            raise RefusalError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"shared memory region '{request.name}' already in manager",
            )
        with (_SHM / request.key.removeprefix("/")).open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        self.keys[request.name] = request.key
        self.names.append(request.name)
        return b""

    async def _unregister(self, message: bytes) -> bytes:
        name = pb.SystemSharedMemoryUnregisterRequest.FromString(message).name
        assert name, "this would drop everybody's regions"
        self.regions.pop(name, None)
        return b""

    async def _status(self, message: bytes) -> bytes:
        name = pb.SystemSharedMemoryStatusRequest.FromString(message).name
        response = pb.SystemSharedMemoryStatusResponse()
        if name and name not in self.regions:
            raise RefusalError(NOT_FOUND, f"Unable to find system shared memory region: '{name}'")
        for known, region in self.regions.items():
            if not name or known == name:
                entry = response.regions[known]
                entry.name, entry.key = known, self.keys[known]
                entry.byte_size = len(region)
        return response.SerializeToString()

    async def _no_cuda(self, message: bytes) -> bytes:
        return pb.CudaSharedMemoryStatusResponse().SerializeToString()

    def _find(self, name: str) -> mmap.mmap:
        if name not in self.regions:
            raise RefusalError(NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        return self.regions[name]

    async def _infer(self, message: bytes) -> bytes:
        request = pb.ModelInferRequest.FromString(message)
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        source = request.inputs[0]
        place = source.parameters
        if "shared_memory_region" in place:
            region = self._find(place["shared_memory_region"].string_param)
        wanted = {output.name: output.parameters for output in request.outputs}
        unknown = wanted.keys() - {self.output_name} - self.silent
        if unknown:
            raise RefusalError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"unexpected inference output '{min(unknown)}' for model 'm'",
            )
        room = wanted.get(self.output_name, {})
        if "shared_memory_region" in room:
            target = self._find(room["shared_memory_region"].string_param)
        if self.holding:
            event = asyncio.Event()
            self.held.append(event)
            self.arrived.release()
            await event.wait()
        if "shared_memory_region" in place:
            begin = place["shared_memory_offset"].int64_param
            end = begin + place["shared_memory_byte_size"].int64_param
            data = bytes(region[begin:end])
        else:
            data = request.raw_input_contents[0]
        data = self.output(data)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        shape = self.shape_of(data) if self.shape_of else source.shape
        response.outputs.add(name=self.output_name, datatype=self.datatype, shape=shape)
        if "shared_memory_region" in room:
            begin = room["shared_memory_offset"].int64_param
            size = room["shared_memory_byte_size"].int64_param
            if len(data) > size:
                raise RefusalError(
                    INTERNAL,
                    f"shared memory size specified with the request for output "
                    f"'{self.output_name}' ({size} bytes) should be at least {len(data)} bytes to "
                    "hold the results",
                )
            target[begin : begin + len(data)] = data
            response.raw_output_contents.append(b"")
        else:
            response.raw_output_contents.append(data)
        return response.SerializeToString()
