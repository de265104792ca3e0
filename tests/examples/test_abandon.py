"""The program that leaves calls behind."""

import pytest

from examples import abandon

pytestmark = [pytest.mark.anyio, pytest.mark.server]


async def test_our_client_leaves_a_server_that_lives():
    lives, made, answered = await abandon.run(abandon.ours, 2000)
    assert lives
    assert made == 2000
    assert answered < made / 2  # the others were abandoned
