"""Encoders that tokenise texts: rows, buckets, masks, limits, pooling."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.handles.fakes import FakeCatalog, FakeInvoker, spec, tensor
from tests.handles.words import (
    CLS,
    PAD,
    SEP,
    text,
    tokenizers,
    words,
    words_tokenizer,
    write_folder,
)
from tritonasync.batching.padding import Padder
from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidInputError,
    ModelFailedError,
    ProtocolError,
)
from tritonasync.handles.architecture import Plug
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.text import buckets as usual
from tritonasync.handles.text.tokenizer import TextTokenizer, tokenizer_of

pytestmark = pytest.mark.anyio

OUTPUT = ("VECTOR", "FP32", (-1, 3))
TOKENS = [("input_ids", "INT64", (-1, -1)), ("attention_mask", "INT64", (-1, -1))]
SENTENCES = spec(TOKENS, [OUTPUT])
ONLY_IDS = spec(TOKENS[:1], [OUTPUT])
FIXED = spec([("input_ids", "INT64", (-1, 10)), ("attention_mask", "INT64", (-1, 10))], [OUTPUT])
HIDDEN = spec(TOKENS, [("HIDDEN", "FP32", (-1, -1, 2))])


def ids_of(call):
    return tensor(call, "input_ids")


def described(call):
    """The sum of the real tokens, their number, and the length of the batch."""
    ids = ids_of(call)
    names = [each.name for each in call.inputs]
    mask = tensor(call, "attention_mask") if "attention_mask" in names else np.ones_like(ids)
    vectors = [(ids * mask).sum(1), mask.sum(1), np.full(len(ids), ids.shape[1])]
    return {"VECTOR": np.stack(vectors, 1).astype(np.float32)}


def hidden(call):
    """Each token's number and place; NaN where the mask is 0."""
    ids = ids_of(call)
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    vectors = np.stack([ids, places], axis=2).astype(np.float32)
    vectors[tensor(call, "attention_mask") == 0] = np.nan
    return {"HIDDEN": vectors}


def encoder(served, model=described, *, tokenizer=None, **options):
    invoker = FakeInvoker(model)
    tokenizer = words_tokenizer() if tokenizer is None else tokenizer
    handle = Encoder(
        "net",
        "",
        Padder(invoker),
        FakeCatalog(served),
        timeout_s=30.0,
        tokenizer=tokenizer,
        **options,
    )
    handle.sent = invoker.calls
    return handle


def sum_of(count):
    return sum(4 + index % 90 for index in range(count)) + CLS + SEP


# --- what is sent ------------------------------------------------------------------------------


async def test_a_text_becomes_ids_and_mask_in_the_models_types():
    served = spec(
        [
            ("input_ids", "INT32", (-1, -1)),
            ("attention_mask", "FP32", (-1, -1)),
            ("token_type_ids", "INT64", (-1, -1)),
            ("position_ids", "INT64", (-1, -1)),
        ],
        [OUTPUT],
    )
    handle = encoder(served, buckets=[6])
    await handle.one("w7 w8")
    (call,) = handle.sent
    assert [t.datatype for t in call.inputs] == ["INT32", "FP32", "INT64", "INT64"]
    assert tensor(call, "input_ids").tolist() == [[CLS, 7, 8, SEP, PAD, PAD]]
    assert tensor(call, "input_ids").dtype == np.int32
    assert tensor(call, "attention_mask").tolist() == [[1, 1, 1, 1, 0, 0]]
    assert tensor(call, "attention_mask").dtype == np.float32
    assert tensor(call, "token_type_ids").tolist() == [[0] * 6]
    assert tensor(call, "position_ids").tolist() == [[0, 1, 2, 3, 0, 0]]
    assert call.rows == 1
    assert call.outputs == (), "all: the model has one"


async def test_a_list_is_split_by_bucket_and_put_together_in_order():
    counts = [3, 40, 1, 14, 15, 100, 30, 2]
    handle = encoder(SENTENCES)
    vectors = await handle([words(count) for count in counts])
    assert vectors[:, 0].tolist() == [sum_of(count) for count in counts]
    assert vectors[:, 1].tolist() == [count + 2 for count in counts]
    assert vectors[:, 2].tolist() == [16, 64, 16, 16, 32, 128, 32, 16]
    assert sorted(call.rows for call in handle.sent) == [1, 1, 2, 4]


async def test_a_single_text_is_filled_up_to_its_bucket():
    handle = encoder(SENTENCES)
    assert (await handle.one(words(5))).tolist() == [sum_of(5), 7, 16]
    assert (await handle.one(words(16))).tolist() == [sum_of(16), 18, 32]


async def test_a_call_knows_its_own_bucket_alone():
    """The stage that fills up takes long buckets for long work, in a thread for each call."""
    handle = encoder(SENTENCES)
    handle._invoker = handle._invoker._next  # without filling up
    await handle([words(1), words(30)])
    assert [call.padding.buckets for call in handle.sent] == [(16,), (32,)]


async def test_without_buckets_a_list_is_one_call_that_may_share_a_batch():
    handle = encoder(SENTENCES, buckets=())
    vectors = await handle([words(1), words(30)])
    assert vectors[:, 1:].tolist() == [[3, 32], [32, 32]]
    (call,) = handle.sent
    assert call.padding is not None
    assert call.padding.inputs == {"input_ids": PAD}
    assert call.padding.mask == "attention_mask"


async def test_a_model_of_fixed_length_gets_it():
    handle = encoder(FIXED)
    vectors = await handle([words(1), words(8)])
    assert vectors[:, 1:].tolist() == [[3, 10], [10, 10]]
    assert len(handle.sent) == 1
    assert (await encoder(FIXED, buckets=[6])([words(1), words(4)]))[:, 2].tolist() == [10, 10]
    with pytest.raises(
        InvalidInputError,
        match=r"model 'net': text 1 has 11 tokens, and 10 is the limit \(the length of the model's "
        r"input 'input_ids'\); shorten or split it, or make the handle with truncate=True",
    ):
        await handle([words(1), words(9)])


async def test_without_a_mask_input_nothing_is_filled_up_unless_that_is_said():
    handle = encoder(ONLY_IDS)
    vectors = await handle([words(3), words(5), words(3, start=50)])
    assert vectors[:, 1].tolist() == [5, 7, 5]
    assert sorted(ids_of(call).shape for call in handle.sent) == [(1, 7), (2, 5)]
    handle = encoder(ONLY_IDS, buckets=[8])
    await handle([words(3), words(5)])
    assert ids_of(handle.sent[0])[0].tolist()[-3:] == [PAD] * 3
    with pytest.raises(ConfigurationError, match="no input for a mask, and the tokenizer no pad"):
        await encoder(ONLY_IDS, buckets=[8], tokenizer=words_tokenizer(pad=False)).one("w4")
    await encoder(ONLY_IDS, tokenizer=words_tokenizer(pad=False)).one("w4")


async def test_a_model_without_batching_takes_texts_too():
    handle = encoder(spec(TOKENS, [OUTPUT], max_batch_size=0))
    vectors = await handle([words(1), words(20)])
    assert vectors[:, 1].tolist() == [3, 22]
    assert [call.rows for call in handle.sent] == [0, 0]


@pytest.mark.parametrize(
    "batch",
    [
        ("w4", "w5"),
        [b"w4", b"w5"],
        np.array(["w4", "w5"]),
        np.array(["w4", "w5"], object),
        np.array([b"w4", b"w5"]),
        [np.str_("w4"), "w5"],
    ],
    ids=["tuple", "bytes", "str array", "object array", "bytes array", "numpy str"],
)
async def test_texts_come_in_lists_and_arrays(batch):
    assert (await encoder(SENTENCES)(batch))[:, 0].tolist() == [4 + 3, 5 + 3]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("w4", "expected a list of texts, got a single str; use handle.one(text)"),
        (b"w4", "expected a list of texts, got a single bytes; use handle.one(text)"),
        ([], "empty batch: expected a list of texts, got none"),
        (["w4", ""], "text 1 is empty: it has no tokens"),
        (["  ", "w4"], "text 0 is empty: it has no tokens"),
        (["w4", None], "expected text 1 to be a str, or bytes of UTF-8, got NoneType"),
        (["w4", ["w5"]], "expected text 1 to be a str, or bytes of UTF-8, got list"),
        ([b"\xff"], "text 0 is no UTF-8: "),
        (["\ud800"], "text 0 cannot be written in UTF-8: "),
        ({"w4"}, "expected a list of texts, got set"),
        (np.zeros(2), "expected a list of texts, got an array of float64 [2]"),
        (np.array([["w4"]]), "expected a list of texts, got an array of <U2 [1, 1]"),
    ],
)
async def test_what_is_no_list_of_texts_is_refused(batch, message):
    handle = encoder(SENTENCES)
    with pytest.raises(InvalidInputError) as caught:
        await handle(batch)
    assert str(caught.value).startswith(f"model 'net': {message}")
    assert handle.sent == []


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "the text is empty: it has no tokens"),
        (None, "expected the text to be a str, or bytes of UTF-8, got NoneType"),
        (["w4"], "expected the text to be a str, or bytes of UTF-8, got list"),
    ],
)
async def test_what_is_no_text_is_refused(item, message):
    with pytest.raises(InvalidInputError, match=message):
        await encoder(SENTENCES).one(item)


async def test_a_text_without_any_token_is_refused_without_special_ones_too():
    handle = encoder(SENTENCES, tokenizer=words_tokenizer(special=False))
    with pytest.raises(InvalidInputError, match="text 0 is empty"):
        await handle([""])
    assert (await handle(["w9"]))[0, 0] == 9


# --- limits ------------------------------------------------------------------------------------


async def test_a_text_beyond_the_limit_is_cut_only_if_asked():
    long = words(20)
    with pytest.raises(
        InvalidInputError, match=r"text 1 has 22 tokens, and 8 is the limit \(by max_length\)"
    ):
        await encoder(SENTENCES, max_length=8)(["w4", long])
    handle = encoder(SENTENCES, max_length=8, truncate=True)
    vectors = await handle(["w4", long])
    assert vectors[1, 1] == 8
    (ids,) = [row for row in ids_of(handle.sent[0]) if row[3] != PAD]
    assert ids.tolist() == [CLS, 4, 5, 6, 7, 8, 9, SEP]


async def test_the_limit_is_the_least_of_all_that_are_known(tmp_path):
    folder = write_folder(tmp_path, tokenizer_config={"model_max_length": 12})
    with pytest.raises(
        InvalidInputError, match=r"12 is the limit \(by model_max_length in .*config.json\)"
    ):
        await encoder(SENTENCES, tokenizer=folder).one(words(11))
    await encoder(SENTENCES, tokenizer=folder, max_length=20).one(words(18))
    with pytest.raises(InvalidInputError, match="19 tokens, and 16 is the limit .the last of buc"):
        await encoder(SENTENCES, tokenizer=folder, max_length=20, buckets=[8, 16]).one(words(17))
    with pytest.raises(InvalidInputError, match="10 is the limit .the length of"):
        await encoder(FIXED, tokenizer=folder).one(words(9))


async def test_the_limit_is_the_last_bucket():
    handle = encoder(SENTENCES, max_length=40)
    assert (await handle.one(words(35)))[2] == 40
    handle = encoder(SENTENCES, max_length=40, buckets=[10, 64])
    assert (await handle([words(4), words(20)]))[:, 2].tolist() == [10, 40]


async def test_a_text_beyond_all_buckets_is_refused_where_there_is_no_other_limit(monkeypatch):
    monkeypatch.setattr(usual, "_STEPS", (16, 32))
    assert (await encoder(SENTENCES).one(words(30)))[2] == 32
    with pytest.raises(InvalidInputError, match=r"33 tokens, and 32 .* .the last of the usual buc"):
        await encoder(SENTENCES)([words(3), words(31)])
    assert (await encoder(SENTENCES, truncate=True).one(words(31)))[1] == 32
    for served, options in ((ONLY_IDS, {}), (SENTENCES, {"buckets": ()})):
        assert (await encoder(served, **options).one(words(31)))[2] == 33


async def test_a_limit_without_room_for_a_text_is_refused():
    with pytest.raises(ConfigurationError, match=r"a limit of 2 tokens \(by max_length\) "):
        await encoder(SENTENCES, max_length=2).one("w4")


# --- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "first", "second"),
    [
        ("mean", (11 + 12 + CLS + SEP) / 4, (11 + CLS + SEP) / 3),
        ("cls", CLS, CLS),
        ("last", SEP, SEP),
    ],
)
async def test_the_vectors_of_real_tokens_become_one(pooling, first, second):
    handle = encoder(HIDDEN, hidden, pooling=pooling)
    vectors = await handle(["w11 w12", "w11", words(40)])
    np.testing.assert_allclose(vectors[:2, 0], [first, second], rtol=1e-6)
    assert np.isfinite(vectors).all()
    last = {"mean": 1.5, "cls": 0, "last": 3}
    assert vectors[0, 1] == last[pooling]
    np.testing.assert_array_equal(await handle.one("w11 w12"), vectors[0])


async def test_vectors_of_tokens_without_a_pooling_are_an_error_that_names_the_choices():
    with pytest.raises(ConfigurationError) as caught:
        await encoder(HIDDEN, hidden).one("w4")
    assert str(caught.value) == (
        "model 'net': expected an output of one vector a row: numbers of shape [batch, D], got "
        "'HIDDEN' FP32 [batch, any, 2], a vector a token; say how they become one: "
        'pooling="mean", "cls" or "last"'
    )


async def test_fewer_vectors_than_tokens_are_an_error():
    two = np.zeros((1, 2, 2), np.float32)
    handle = encoder(HIDDEN, lambda call: {"HIDDEN": two}, pooling="cls")
    with pytest.raises(ProtocolError, match=r"expected \[batch, 4 tokens or more, D\], got \[1, 2"):
        await handle.one("w4 w5")


async def test_normalised_vectors_have_length_one_whatever_their_bucket():
    vectors = await encoder(HIDDEN, hidden, pooling="mean", normalize=True)(
        [words(2), words(50), words(9)]
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is a whole number of tokens from 1 on, not 0"),
        ({"max_length": True}, "max_length is a whole number"),
        ({"truncate": 1}, "truncate is True or False, not 1"),
        ({"buckets": [16, 8]}, "in rising order"),
        ({"buckets": [8, 8]}, "in rising order"),
        ({"buckets": 16}, "buckets is a list of lengths, not 16"),
        ({"buckets": [0.5]}, "whole numbers of tokens"),
        ({"pooling": "max"}, "pooling is one of mean, cls, last, none, not 'max'"),
        ({"image_size": 8}, "image_size is for images, and tokenizer for texts"),
        ({"tokenizer": 5}, "or a tokenizers.Tokenizer, not int"),
    ],
)
async def test_an_option_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        encoder(SENTENCES, **options)


@pytest.mark.parametrize(
    "options",
    [{"max_length": 8}, {"truncate": True}, {"buckets": []}, {"mask_name": "M"}],
)
async def test_options_for_tokens_want_a_tokenizer(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"{name}= is for texts that are tokenised here"):
        Encoder("net", "", FakeInvoker(), FakeCatalog(SENTENCES), timeout_s=1, **options)


async def test_a_model_that_takes_tokens_says_that_it_wants_a_tokenizer():
    handle = Encoder("net", "", FakeInvoker(), FakeCatalog(SENTENCES), timeout_s=1)
    with pytest.raises(ConfigurationError, match=r"takes tokens: 'input_ids' INT64 \[batch, any"):
        await handle(["w4"])
    handle = Encoder("net", "", FakeInvoker(described), FakeCatalog(ONLY_IDS), timeout_s=1)
    with pytest.raises(InvalidInputError, match=r"expected INT64 .*got a str; .* tokenizer="):
        await handle.one("w4")
    assert (await handle([[4, 5]]))[0, 0] == 9


async def test_a_transformers_tokenizer_is_pointed_at_its_backend():
    class Fast:
        backend_tokenizer = words_tokenizer()

    with pytest.raises(ConfigurationError, match="Fast; give its backend_tokenizer"):
        encoder(SENTENCES, tokenizer=Fast())


# --- filling -----------------------------------------------------------------------------------


async def test_short_texts_are_filled_up_little_beside_long_ones():
    rng = np.random.default_rng(0)
    counts = rng.permutation([*rng.integers(3, 13, 60), *rng.integers(150, 241, 4)])
    sent_for_each_real = []
    for buckets in (None, ()):
        handle = encoder(SENTENCES, buckets=buckets)
        await handle([words(count) for count in counts])
        real = sum(tensor(call, "attention_mask").sum() for call in handle.sent)
        assert real == sum(counts + 2)
        sent_for_each_real.append(sum(ids_of(call).size for call in handle.sent) / real)
    with_buckets, without = sent_for_each_real
    assert with_buckets < 2
    assert without > 5


# --- the course of a call ----------------------------------------------------------------------


async def test_the_first_error_of_a_split_call_surfaces_alone():
    def fails_on_long(call):
        if ids_of(call).shape[1] > 16:
            raise ModelFailedError("the model raised", code="INTERNAL", details="", model="net")
        return described(call)

    handle = encoder(SENTENCES, fails_on_long)
    with pytest.raises(ModelFailedError, match="the model raised"):
        await handle([words(3), words(40), words(100)])
    assert (await handle([words(3)]))[0, 1] == 5


async def test_groups_beside_one_that_fails_are_given_up():
    left = []

    class Stuck(FakeInvoker):
        async def infer(self, call):
            if ids_of(call).shape[1] > 16:
                await asyncio.sleep(0)
                raise ModelFailedError("the model raised", code="INTERNAL", details="", model="net")
            try:
                await asyncio.Event().wait()
            finally:
                left.append(call)

    handle = encoder(SENTENCES)
    handle._invoker = Padder(Stuck())
    with pytest.raises(ModelFailedError):
        await asyncio.wait_for(handle([words(3), words(40)]), 10)
    assert len(left) == 1


async def test_groups_are_sent_side_by_side():
    together = asyncio.Barrier(3)

    class Meeting(FakeInvoker):
        async def infer(self, call):
            await asyncio.wait_for(together.wait(), 10)
            return await super().infer(call)

    handle = encoder(SENTENCES)
    handle._invoker = Padder(Meeting(described))
    vectors = await handle([words(3), words(20), words(60)])
    assert vectors[:, 1].tolist() == [5, 22, 62]


async def test_few_texts_are_tokenised_at_once_and_many_in_another_thread(monkeypatch):
    threads = []
    tokens = TextTokenizer.tokens

    def watched(self, texts, deadline, model):
        threads.append(threading.current_thread())
        return tokens(self, texts, deadline, model)

    monkeypatch.setattr(TextTokenizer, "tokens", watched)
    handle = encoder(SENTENCES)
    await handle([words(5)] * 20)
    await handle.one(words(5))
    await handle([words(5)] * 300)
    await handle.one(words(2000))
    here = [thread is threading.main_thread() for thread in threads]
    assert here == [True, True, False, False]


async def test_many_texts_leave_the_event_loop_its_turns():
    handle = encoder(SENTENCES)
    counts = np.random.default_rng(0).integers(1, 60, 3000)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    vectors = await handle([words(count) for count in counts])
    ticking.cancel()
    assert ticks > 20
    np.testing.assert_array_equal(vectors[:, 1], counts + 2)


async def test_many_texts_are_given_up_when_the_time_is_up():
    handle = encoder(SENTENCES)
    await handle.one("w4")
    tokenizer = await tokenizer_of(handle._texts.tokenizer, NEVER, "net")
    done = []

    class Slow:
        def encode_batch(self, texts):
            time.sleep(0.02)
            done.append(len(texts))
            return tokenizer.tokenizer.encode_batch(texts)

    slow = replace(tokenizer, tokenizer=Slow())
    with pytest.raises(DeadlineExceededError, match="model 'net': .* stage 'encode'"):
        slow.tokens(["w4"] * 100_000, Deadline.after(0.03), "net")
    assert 1 <= len(done) <= 3
    assert len(slow.tokens(["w4"] * 1100, NEVER, "net")) == 1100


async def test_the_users_tokenizer_is_left_as_it_is_and_its_truncation_is_the_limit():
    own = words_tokenizer()
    own.enable_padding(length=40, pad_id=PAD, pad_token="[PAD]")
    own.enable_truncation(6)
    handle = encoder(SENTENCES, tokenizer=own)
    assert (await handle.one(text(4, 5))).tolist() == [9 + 3, 4, 6]
    assert own.padding["length"] == 40
    assert own.truncation["max_length"] == 6
    with pytest.raises(InvalidInputError, match="8 tokens, and 6 is the limit .by the tokenizer's"):
        await handle.one(words(6))


async def test_tokenizers_made_for_each_call_do_not_pile_up():
    def alive():
        gc.collect()
        return sum(issubclass(type(each), TextTokenizer) for each in gc.get_objects())

    before = alive()
    for _ in range(80):
        await encoder(SENTENCES).one("w4")  # a tokenizer of its own
    assert alive() - before <= 60


def test_the_tests_have_a_tokenizer():
    assert tokenizers is not None


async def test_an_architecture_may_prepare_the_texts():
    plug = Plug("architecture 'query'", lambda items: [f"w50 {item}" for item in items])
    handle = encoder(SENTENCES, plug=plug)
    assert (await handle(["w4", "w5"]))[:, 0].tolist() == [4 + 53, 5 + 53]
    assert (await handle.one("w4"))[0] == 4 + 53


async def test_an_architecture_that_reads_outputs_has_no_use_of_a_tokenizer():
    plug = Plug("architecture 'mine'", None, lambda outputs: outputs["VECTOR"])
    with pytest.raises(ConfigurationError, match="tokenizer is of no use to architecture 'mine'"):
        encoder(SENTENCES, plug=plug)
