"""Texts tokenised on the client, on the real server: batches by bucket, masks, pooling."""

import asyncio

import numpy as np
import pytest

from tests.handles.words import CLS, SEP, words, words_tokenizer, write_folder
from tritonasync import InvalidInputError, TritonPool

pytestmark = [pytest.mark.anyio, pytest.mark.server]

LENGTHS = [3, 40, 1, 14, 15, 100, 30, 2, 9, 70]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "words")


def mean_of(count):
    return (sum(4 + index % 90 for index in range(count)) + CLS + SEP) / (count + 2)


def assert_means(vectors):
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[:, 0], [mean_of(count) for count in LENGTHS], rtol=1e-6)
    np.testing.assert_allclose(vectors[:, 1], [(count + 1) / 2 for count in LENGTHS], rtol=1e-6)


async def test_callers_of_one_text_share_batches_with_those_of_their_bucket(pool, folder):
    await pool.encoder("token_vectors", tokenizer=folder, pooling="mean").one("w4")
    vectors = np.stack(
        await asyncio.gather(
            *[
                pool.encoder("token_vectors", tokenizer=folder, pooling="mean").one(words(count))
                for count in LENGTHS
            ]
        )
    )
    assert_means(vectors)
    rows, lengths = vectors[:, 2].tolist(), vectors[:, 3].tolist()
    assert lengths == [16, 64, 16, 16, 32, 128, 32, 16, 16, 128]
    assert rows == [5, 1, 5, 5, 2, 2, 2, 5, 5, 2]


async def test_a_list_is_split_by_bucket_and_comes_back_in_order(pool, folder):
    encoder = pool.encoder("token_vectors", tokenizer=folder, pooling="mean")
    vectors = await encoder([words(count) for count in LENGTHS])
    assert_means(vectors)
    assert vectors[:, 3].tolist() == [16, 64, 16, 16, 32, 128, 32, 16, 16, 128]


async def test_without_buckets_a_batch_is_as_long_as_its_longest_row(pool, folder):
    encoder = pool.encoder("token_vectors", tokenizer=folder, pooling="mean", buckets=())
    await encoder.one("w4")
    vectors = await asyncio.gather(*[encoder.one(words(count)) for count in LENGTHS])
    assert_means(np.stack(vectors))
    assert {tuple(vector[2:]) for vector in vectors} == {(len(LENGTHS), 102)}


@pytest.mark.parametrize(("pooling", "token", "place"), [("cls", CLS, 0), ("last", SEP, None)])
async def test_the_first_and_last_real_tokens_are_found(pool, folder, pooling, token, place):
    encoder = pool.encoder("token_vectors", tokenizer=folder, pooling=pooling)
    vectors = await encoder([words(count) for count in LENGTHS])
    assert vectors[:, 0].tolist() == [token] * len(LENGTHS)
    places = [count + 1 if place is None else place for count in LENGTHS]
    assert vectors[:, 1].tolist() == places


async def test_more_texts_than_a_batch_holds_are_sent_in_several(pool, folder):
    encoder = pool.encoder("token_vectors", tokenizer=folder, pooling="mean")
    vectors = await encoder([words(count) for count in LENGTHS * 10])
    for part in np.split(vectors, 10):
        assert_means(part)
    assert vectors[:, 2].max() == 16


async def test_without_batching_texts_are_encoded_too(server, folder):
    async with TritonPool(server.grpc_url, batching=None) as pool:
        encoder = pool.encoder("token_vectors", tokenizer=folder, pooling="mean")
        assert_means(await encoder([words(count) for count in LENGTHS]))


async def test_a_text_that_is_refused_harms_nobody(pool):
    encoder = pool.encoder(
        "token_vectors", tokenizer=words_tokenizer(), pooling="mean", max_length=20
    )
    empty, long, good = await asyncio.gather(
        encoder.one(" "), encoder.one(words(30)), encoder.one(words(3)), return_exceptions=True
    )
    assert isinstance(empty, InvalidInputError)
    assert str(empty) == "model 'token_vectors': the text is empty: it has no tokens"
    assert isinstance(long, InvalidInputError)
    assert "the text has 32 tokens, and 20 is the limit (by max_length)" in str(long)
    assert good[0] == pytest.approx(mean_of(3))
