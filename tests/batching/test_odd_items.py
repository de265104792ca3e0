"""Items unlike the others, on the short way: what they get is what they get without batching."""

from __future__ import annotations

import numpy as np
import pytest

from tests.batching.fakes import Stack, Stage, nothing_left, told, with_lane
from tritonasync.core.errors import InvalidInputError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def clean():
    async with nothing_left():
        yield


def item(number):
    return {"A": np.array([number])}


def firsts(results):
    return [result["OUT"].tolist() for result in results]


class Ours(np.ndarray):
    """A subclass may say anything of itself."""


ODD = {
    "int32": np.array([1], np.int32),
    "float64": np.array([1.0]),
    "complex": np.array([1j]),
    "big endian": np.array([1], ">i8"),
    "two": np.array([1, 2]),
    "rows": np.array([[1]]),
    "none": np.array([], np.int64),
    "number": np.array(1),
    "list": [1],
    "ragged": [[1], [1, 2]],
    "tuple": (1,),
    "scalar": 1,
    "None": None,
    "text": "1",
    "object": np.array([1], object),
    "masked": np.ma.masked_array([1], [True]),
    "subclass": np.array([1]).view(Ours),
    "strided": np.arange(1, 9)[::8],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_an_odd_item_among_others_gets_what_it_gets_without_batching(name, position):
    plain = Stack(Stage(), batching=False).model()
    await told(plain.one(item(0)))
    (expected,) = await told(plain.one({"A": ODD[name]}))
    stack = Stack(Stage())
    model = await with_lane(stack)
    items = [item(7), item(8)]
    items.insert(position, {"A": ODD[name]})
    results = await told(*map(model.one, items))
    got = results.pop(position)
    assert type(got) is type(expected)
    if isinstance(expected, Exception):
        assert str(got) == str(expected)
    else:
        assert got["OUT"].tolist() == expected["OUT"].tolist()
    assert firsts(results) == [[70], [80]]


@pytest.mark.parametrize("name", ODD)
async def test_a_lone_odd_item_gets_what_it_gets_without_batching(name):
    plain = Stack(Stage(), batching=False).model()
    await told(plain.one(item(0)))
    model = await with_lane(Stack(Stage()))
    (expected,) = await told(plain.one({"A": ODD[name]}))
    (got,) = await told(model.one({"A": ODD[name]}))
    assert type(got) is type(expected)
    if isinstance(expected, Exception):
        assert str(got) == str(expected)
    else:
        assert got["OUT"].tolist() == expected["OUT"].tolist()


@pytest.mark.parametrize("arrays", [{}, {"X": 1}, {"A": 1, "X": 2}, 5, [("A", 1)]], ids=str)
async def test_wrong_names_among_others_are_refused_as_without_batching(arrays):
    plain = Stack(Stage(), batching=False).model()
    (expected,) = await told(plain.one(arrays))
    stack = Stack(Stage())
    model = await with_lane(stack)
    first, got, last = await told(model.one(item(7)), model.one(arrays), model.one(item(8)))
    assert isinstance(expected, InvalidInputError)
    assert (type(got), str(got)) == (type(expected), str(expected))
    assert firsts([first, last]) == [[70], [80]]
