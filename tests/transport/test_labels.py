"""Names of classes are looked for once, and a server is asked only where that does no harm."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    PoolClosedError,
    ProtocolError,
    QueueFullError,
)
from tritonasync.core.values import Call, ClassQuestion, InputTensor, ModelSpec, TensorSpec
from tritonasync.transport.catalog import Catalog
from tritonasync.transport.classes import parsed_labels
from tritonasync.transport.labels import LabelBook

pytestmark = pytest.mark.anyio

SCORES = TensorSpec("SCORES", "FP32", (-1, 3), label_filename="names/labels.txt")
SPEC = ModelSpec("pets", "", ("1",), "python", 8, (TensorSpec("X", "FP32", (-1, 3)),), (SCORES,))
ROW = InputTensor("X", "FP32", (1, 3), (np.zeros((1, 3), np.float32),))
QUESTION = ClassQuestion(Call("pets", "", (ROW,), 1), "SCORES", 3)
NAMES = ("ant", "bee", "cat")


class Server:
    """Answers when told to."""

    def __init__(self):
        self.asked = 0
        self.names = NAMES
        self.error = None
        self.go = asyncio.Event()
        self.go.set()

    async def ask(self, question, deadline):
        self.asked += 1
        names = self.names
        await self.go.wait()
        if self.error:
            raise self.error
        return names


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def book(server):
    book = LabelBook(server.ask)
    yield book
    await book.aclose()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


# --- one question ---


async def test_many_callers_ask_one_question_and_then_none(server, book):
    server.go.clear()
    callers = [asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER)) for _ in range(50)]
    await settle()
    assert book.known("pets", "", "SCORES", asking=True) is None
    server.go.set()
    assert set(await asyncio.gather(*callers)) == {NAMES}
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == NAMES
    assert book.known("pets", "", "SCORES", asking=True) == NAMES
    assert server.asked == 1


async def test_a_caller_that_leaves_or_is_late_does_not_end_the_question(server, book):
    server.go.clear()
    leaver, patient = (
        asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER)) for _ in range(2)
    )
    with pytest.raises(DeadlineExceededError) as caught:
        await book.names(SPEC, SCORES, QUESTION, Deadline.after(0.02))
    assert (caught.value.stage, caught.value.model) == ("metadata", "pets")
    leaver.cancel()
    await settle()
    server.go.set()
    assert await patient == NAMES
    assert server.asked == 1


async def test_a_failure_means_no_names_until_they_are_forgotten(server, book, caplog):
    server.error = InvalidRequestError(
        "class result not available", model="pets", code="INVALID_ARGUMENT", details=""
    )
    for _ in range(3):
        assert await book.names(SPEC, SCORES, QUESTION, NEVER) == ()
    assert server.asked == 1
    assert "does not name the classes of output 'SCORES': class result" in caplog.text
    server.error = None
    book.forget("pets")
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == NAMES


async def test_what_may_pass_is_asked_again_after_a_while(server, caplog):
    now = [100.0]
    book = LabelBook(server.ask, clock=lambda: now[0])
    server.error = QueueFullError("queue full", model="pets", code="UNAVAILABLE", details="")
    for _ in range(3):
        assert await book.names(SPEC, SCORES, QUESTION, NEVER) == ()
    assert book.known("pets", "", "SCORES", asking=True) == ()
    assert server.asked == 1  # not again for every call meanwhile
    assert "queue full; asked again in 10 s at the earliest" in caplog.text
    server.error = None
    now[0] += 10
    assert book.known("pets", "", "SCORES", asking=True) is None
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == ()  # nobody waits for it
    assert book.known("pets", "", "SCORES", asking=True) == ()
    await settle()
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == NAMES
    now[0] += 10
    assert book.known("pets", "", "SCORES", asking=True) == NAMES
    assert server.asked == 2
    await book.aclose()


async def test_what_failed_for_good_is_not_asked_again(server):
    now = [100.0]
    book = LabelBook(server.ask, clock=lambda: now[0])
    server.error = InvalidRequestError("no", model="pets", code="INVALID_ARGUMENT", details="")
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == ()
    now[0] += 1e6
    assert book.known("pets", "", "SCORES", asking=True) == ()
    await book.aclose()


async def test_names_are_forgotten_by_model_and_version(book):
    other = replace(SPEC, version="2")
    for spec in (SPEC, other):
        await book.names(spec, SCORES, QUESTION, NEVER)
    book.forget("dogs")
    book.forget("pets", "2")
    assert book.known("pets", "", "SCORES", asking=True) == NAMES
    assert book.known("pets", "2", "SCORES", asking=True) is None
    book.forget("pets")
    assert book.known("pets", "", "SCORES", asking=True) is None


async def test_an_answer_to_what_was_forgotten_meanwhile_is_not_remembered(server, book):
    server.go.clear()
    waiter = asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER))
    await settle()
    book.forget("pets")
    server.names = ("a", "b", "c")
    newer = asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER))
    await settle()
    server.go.set()
    assert (await waiter, await newer) == (NAMES, ("a", "b", "c"))
    assert book.known("pets", "", "SCORES", asking=True) == ("a", "b", "c")


async def test_an_answer_that_came_too_late_leaves_the_names_unknown(server, book):
    server.go.clear()
    waiter = asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER))
    await settle()
    book.forget("pets")
    server.go.set()
    assert await waiter == NAMES
    assert book.known("pets", "", "SCORES", asking=True) is None


async def test_closing_ends_the_question_and_tells_its_callers(server, book):
    server.go.clear()
    waiter = asyncio.create_task(book.names(SPEC, SCORES, QUESTION, NEVER))
    await settle()
    await book.aclose()
    with pytest.raises(PoolClosedError, match="the pool was closed while it asked for labels"):
        await waiter


async def test_a_pool_that_is_closed_below_is_no_answer(server, book):
    server.error = PoolClosedError("the pool is closed")
    waiters = [book.names(SPEC, SCORES, QUESTION, NEVER) for _ in range(2)]
    first, second = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(first, PoolClosedError)
    assert isinstance(second, PoolClosedError)
    assert first is not second
    assert book.known("pets", "", "SCORES", asking=True) is None


async def test_a_catalog_ends_the_questions_for_names_too(server, book):
    catalog = Catalog(None, labels=book)
    server.go.clear()
    waiter = asyncio.create_task(catalog.labels(SPEC, SCORES, QUESTION, NEVER))
    await settle()
    await catalog.aclose()
    with pytest.raises(PoolClosedError):
        await waiter


async def test_a_catalog_without_names_knows_that_there_are_none():
    catalog = Catalog(None)
    assert catalog.known_labels("pets", "", "SCORES", asking=True) == ()
    assert await catalog.labels(SPEC, SCORES, QUESTION, NEVER) == ()


async def test_a_renewed_signature_forgets_the_names(server, book):
    async def describe(model, version, deadline):
        return SPEC

    catalog = Catalog(describe, labels=book)
    await catalog.describe("pets", "", NEVER)
    assert await catalog.labels(SPEC, SCORES, QUESTION, NEVER) == NAMES
    assert catalog.known_labels("pets", "", "SCORES", asking=True) == NAMES
    assert await catalog.renew("pets", "", NEVER) is SPEC  # the same, but with other names perhaps
    assert catalog.known_labels("pets", "", "SCORES", asking=True) is None
    await catalog.labels(SPEC, SCORES, QUESTION, NEVER)
    catalog.forget("pets")
    assert catalog.known_labels("pets", "", "SCORES", asking=True) is None
    await catalog.aclose()


# --- questions that are not asked ---


@pytest.mark.parametrize(
    ("spec", "output", "question"),
    [
        (SPEC, replace(SCORES, datatype="BYTES"), QUESTION),
        (SPEC, replace(SCORES, datatype="FP16"), QUESTION),
        (SPEC, replace(SCORES, datatype="BOOL"), QUESTION),
        (SPEC, replace(SCORES, label_filename=""), QUESTION),
        (replace(SPEC, decoupled=True), SCORES, QUESTION),
        (replace(SPEC, stateful=True), SCORES, QUESTION),
        (SPEC, SCORES, replace(QUESTION, call=replace(QUESTION.call, idempotent=False))),
        (SPEC, SCORES, replace(QUESTION, classes=0)),
        (SPEC, SCORES, None),
    ],
)
async def test_a_server_is_not_asked_where_it_could_do_harm(server, book, spec, output, question):
    assert await book.names(spec, output, question, NEVER) == ()
    assert server.asked == 0
    assert book.known("pets", "", "SCORES", asking=question is not None) == ()


async def test_what_was_not_found_without_asking_is_asked_for_later(server, book):
    assert await book.names(SPEC, SCORES, None, NEVER) == ()
    assert book.known("pets", "", "SCORES", asking=True) is None
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == NAMES


# --- the model's folder ---


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "models"
    (folder / "pets" / "names").mkdir(parents=True)
    (folder / "pets" / "names" / "labels.txt").write_text("ape\nboa\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    return folder


async def test_the_folder_comes_before_the_server(server, repository):
    book = LabelBook(server.ask, repository)
    assert await book.names(SPEC, SCORES, QUESTION, NEVER) == ("ape", "boa")
    assert await book.names(SPEC, SCORES, None, NEVER) == ("ape", "boa")
    assert server.asked == 0


@pytest.mark.parametrize("content", [b"\xff", b"", None])
async def test_a_file_that_is_of_no_use_leaves_it_to_the_server(server, repository, content):
    path = repository / "pets" / "names" / "labels.txt"
    path.unlink() if content is None else path.write_bytes(content)
    assert await LabelBook(server.ask, repository).names(SPEC, SCORES, QUESTION, NEVER) == NAMES


@pytest.mark.parametrize(
    ("model", "filename"),
    [
        ("pets", "../../secret.txt"),
        ("pets", "names/../../../secret.txt"),
        ("pets", "{secret}"),
        ("..", "secret.txt"),
        ("../models/..", "secret.txt"),
        ("/", "{secret}"),
        (".", "pets/names/labels.txt"),
    ],
)
async def test_no_file_outside_the_models_folder_is_read(server, repository, model, filename):
    filename = filename.format(secret=repository.parent / "secret.txt")
    book = LabelBook(server.ask, repository)
    output = replace(SCORES, label_filename=filename)
    assert await book.names(replace(SPEC, name=model), output, None, NEVER) == ()


# --- a server's answer ---


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ([b"0.9:2:cat", b"0.1:0:ant", b"0.0:1:bee"], NAMES),
        ([b"nan:0:ratio 4:3", b"-1e9:1", b"inf:2::"], ("ratio 4:3", "", ":")),
        ([b"1:0: cat\r", b"1:2:gr\xc3\xbcn"], ("cat", "", "grün")),
        ([b"1:1:\xff"], ("", "�", "")),
        ([b"1:0:\xef\xbb\xbfant", b"1:2:\xef\xbb\xbfcat"], ("ant", "", "\ufeffcat")),
        ([b"1:0", b"1:1", b"1:2:"], ()),
        ([], ()),
    ],
)
def test_names_are_by_class_whatever_their_order_and_form(entries, names):
    assert parsed_labels(QUESTION, entries) == names


@pytest.mark.parametrize("entry", [b"", b"0.5", b"0.5:", b"0.5:x:cat", b"0.5:3:cat", b"0.5:-1:cat"])
def test_an_answer_of_another_form_is_an_error(entry):
    with pytest.raises(ProtocolError, match="model 'pets', output 'SCORES': expected classes as "):
        parsed_labels(QUESTION, [entry])
