"""The example's application: what it answers, and to whom it does not."""

import asyncio
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from examples.fastapi_app.app import LARGEST_UPLOAD, triton
from tests.integrations.serve import asked, connected, request, serving, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.server,
    pytest.mark.usefixtures("no_task_is_left"),
]


@pytest.fixture
async def url(app):
    async with serving(app) as url:
        yield url


@pytest.fixture
async def client(url):
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


def events(text):
    lines = [event.split("\n") for event in text.split("\n\n")[:-1]]
    return [(n.removeprefix("event: "), json.loads(d.removeprefix("data: "))) for n, d in lines]


async def idle():
    await until(lambda: triton.pool.statistics().in_flight == 0)


# --- what it answers ------------------------------------------------------------------------------


async def test_the_page_is_served(client):
    answer = await client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "Drop an image here" in answer.text


async def test_a_digit_is_recognised(client, digit):
    image, label = digit
    answer = await client.post("/classify", content=image)
    assert answer.status_code == 200
    assert answer.json()["label"] == label


async def test_digits_are_found_where_they_are(client, scene):
    image, boxes, labels = scene
    found = (await client.post("/detect", content=image)).json()
    assert (found["height"], found["width"]) == (128, 128)
    got = sorted(found["detections"], key=lambda one: one["box"][0])
    order = np.argsort(boxes[:, 0])
    assert [one["label"] for one in got] == [str(label) for label in labels[order]]
    np.testing.assert_allclose([one["box"] for one in got], boxes[order], atol=3)


async def test_sentences_of_one_meaning_have_near_vectors(client):
    texts = ["A cat sleeps.", "A cat is asleep.", "Stocks fell on Monday."]
    answer = await client.post("/embed", json={"texts": texts})
    vectors = np.array(answer.json()["vectors"])
    assert vectors.shape == (3, 384)
    near = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert near[0] @ near[1] > 0.7 > near[0] @ near[2]


async def test_text_comes_in_pieces(client):
    answer = await client.get("/generate", params={"prompt": "the song", "max_tokens": 60})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, end = events(answer.text)
    assert end == ("end", "")
    assert len(pieces) > 10
    text = await triton.pool.generator("tokens").text("the song", MAX_TOKENS=60)
    assert "".join(data for _, data in pieces) == text


async def test_it_says_how_it_is(client):
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).json() == {"status": 200, "ready": True}


# --- bad requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/classify", "/detect"])
@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(100)])
async def test_what_is_no_image_is_refused_with_words_for_the_client(client, path, body):
    answer = await client.post(path, content=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_input"
    assert "127.0.0.1" not in answer.text
    assert "image" in answer.json()["detail"]


async def test_a_truncated_image_is_refused(client, scene):
    answer = await client.post("/detect", content=scene[0][: len(scene[0]) // 2])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


async def test_an_image_of_too_many_pixels_is_refused_unseen(client):
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "png")  # a few kilobytes
    assert len(file.getvalue()) < 50_000
    answer = await client.post("/detect", content=file.getvalue())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "16000000 pixels" in answer.json()["detail"]


async def test_an_upload_that_says_it_is_too_long_is_refused_unread(url):
    async with connected(url) as (reader, writer):
        writer.write(request("POST", "/detect", length=LARGEST_UPLOAD + 1))
        assert b" 413 " in await reader.readline()


async def test_an_upload_that_turns_out_too_long_is_refused(client):
    async def endless():
        for _ in range(LARGEST_UPLOAD // 65536 + 2):
            yield bytes(65536)

    answer = await client.post("/detect", content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize("texts", [[], [1], ["x"] * 65, "x"])
async def test_texts_that_make_no_sense_are_fastapis_to_refuse(client, texts):
    assert (await client.post("/embed", json={"texts": texts})).status_code == 422


async def test_a_prompt_that_makes_no_sense_is_fastapis_to_refuse(client):
    assert (await client.get("/generate")).status_code == 422


# --- load, and clients that do not stay -----------------------------------------------------------


async def test_hundreds_at_once_are_answered_and_share_batches(url, digit):
    image, label = digit
    before = rows_and_batches()
    answers = await asyncio.gather(*[asked(url, "/classify", image) for _ in range(300)])
    assert {answer["label"] for answer in answers} == {label}
    rows, batches = (after - b for after, b in zip(rows_and_batches(), before, strict=True))
    assert rows == 300
    assert rows / batches > 1.5
    await idle()


def rows_and_batches():
    batching = triton.pool.statistics().batching
    return next(((one.rows, one.batches) for one in batching if one.model == "digits"), (0, 0))


async def test_clients_that_hang_up_in_the_middle_of_uploads_leave_nothing(url, client, scene):
    async def hang_up():
        async with connected(url) as (_, writer):
            writer.write(request("POST", "/detect", length=len(scene[0])) + scene[0][:-1])
            await writer.drain()

    await asyncio.gather(*[hang_up() for _ in range(100)])
    await idle()
    assert (await client.post("/detect", content=scene[0])).status_code == 200


async def test_clients_that_hang_up_in_the_middle_of_calls_leave_nothing(url, client, digit):
    image, label = digit

    async def hang_up():
        async with connected(url) as (_, writer):
            writer.write(request("POST", "/classify", length=len(image)) + image)
            await writer.drain()
            await asyncio.sleep(0.01)

    await asyncio.gather(*[hang_up() for _ in range(200)])
    await idle()
    assert (await client.post("/classify", content=image)).json()["label"] == label


async def test_clients_that_hang_up_in_the_middle_of_streams_end_them(url, client):
    async def hang_up():
        async with connected(url) as (reader, writer):
            writer.write(request("GET", "/generate?prompt=x&max_tokens=100&delay_ms=20"))
            await reader.readuntil(b"event: piece\n")

    await asyncio.gather(*[hang_up() for _ in range(20)])
    before = asyncio.get_running_loop().time()
    await until(lambda: not streams())
    assert asyncio.get_running_loop().time() - before < 1.5  # told to the end, it takes 2 s
    answer = await client.get("/generate", params={"prompt": "x", "max_tokens": 5})
    assert events(answer.text)[-1] == ("end", "")


def streams():
    return [task for task in asyncio.all_tasks() if "RequestResponseCycle" in repr(task.get_coro())]
