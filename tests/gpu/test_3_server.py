"""A server on the same GPU: what goes in comes out, by CUDA shared memory and nothing else."""

import asyncio
import gc

import numpy as np
import pytest

from tritonasync import TritonPool

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

pytestmark = pytest.mark.anyio

LONG = 15_000_000  # cycles: about 10 ms
N = 1 << 18


@pytest.fixture
async def pool(server):
    async with TritonPool(server.url, shared_memory="cuda", batching=None) as pool:
        yield pool


@pytest.fixture
def model(pool):
    return pool.model("ident_gpu")


async def test_numpy_in_and_out(model):
    rows = np.random.default_rng(0).random((4, N), np.float32)
    outputs = await model(INPUT0=rows)
    assert isinstance(outputs["OUTPUT0"], np.ndarray)
    assert outputs["OUTPUT0"].tobytes() == rows.tobytes()


async def test_cupy_in_and_out(model):
    rows = cupy.random.default_rng(0).random((4, N), "f4")
    outputs = await model(INPUT0=rows)
    assert isinstance(outputs["OUTPUT0"], cupy.ndarray)
    assert bool((outputs["OUTPUT0"] == rows).all())


async def test_a_gpus_output_is_fetched_when_asked(model):
    outputs = await model(INPUT0=cupy.ones((1, N), "f4"), output_memory="host")
    assert isinstance(outputs["OUTPUT0"], np.ndarray)
    assert (outputs["OUTPUT0"] == 1).all()


async def test_torch_in_and_out(model):
    torch = pytest.importorskip("torch")
    rows = torch.rand(4, N, device="cuda")
    outputs = await model(INPUT0=rows)
    assert torch.equal(torch.from_dlpack(outputs["OUTPUT0"]), rows)


async def test_a_lease_is_computed_in_place(model):
    async with model.lease(4, shapes={"INPUT0": (N,)}, memory="cuda") as slot:
        for turn in range(20):
            slot["INPUT0"][...] = turn
            outputs = await model(slot)
            assert bool((outputs["OUTPUT0"] == turn).all())


async def test_a_request_never_leaves_before_its_producer_is_done(model, spin):
    side = cupy.cuda.Stream(non_blocking=True)
    rows = cupy.zeros((1, N), "f4")
    for turn in range(1, 101):
        with side:
            spin(LONG)
            rows += 1
            # The task that makes the call is this one: its current stream is captured at once.
            call = model(INPUT0=rows)
            outputs = await call
        assert bool((outputs["OUTPUT0"] == turn).all())
        side.synchronize()


async def test_results_that_are_kept_are_not_overwritten(model):
    kept = []
    for turn in range(40):
        outputs = await model(INPUT0=np.full((1, N), turn, np.float32), output_memory="gpu")
        kept.append(outputs["OUTPUT0"])
    for turn, output in enumerate(kept):
        assert bool((output == turn).all())


async def test_many_callers_at_once_get_their_own(server):
    async with TritonPool(server.url, shared_memory="cuda") as pool:
        model = pool.model("ident_gpu")

        async def call(number):
            for turn in range(20):
                rows = np.full((2, 50_000), number * 100 + turn, np.float32)
                outputs = await model(INPUT0=rows)
                assert (outputs["OUTPUT0"] == rows).all()

        await asyncio.gather(*[call(number) for number in range(64)])


async def test_what_was_abandoned_is_not_lent_again_too_early(model):
    for turn in range(200):
        call = asyncio.create_task(model(INPUT0=np.full((1, N), -1, np.float32)))
        await asyncio.sleep(0.0005)
        call.cancel()
        outputs = await model(INPUT0=np.full((1, N), turn, np.float32))
        assert (outputs["OUTPUT0"] == turn).all()
        await asyncio.gather(call, return_exceptions=True)
        gc.collect()
