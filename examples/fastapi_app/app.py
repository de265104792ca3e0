"""Classify, detect, embed and generate over HTTP: the application, and nothing that starts it.

``TRITON_URL`` says where the server is. Run it with its own server by
``python -m examples.fastapi_app``, or beside one: ``uvicorn examples.fastapi_app.app:app``. Images
are sent as they are, not as forms: ``curl --data-binary @image.png http://127.0.0.1:8000/detect``.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated

from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, StreamingResponse

from tritonasync import (
    Classifier,
    Detector,
    Encoder,
    Generator,
    ResponseStream,
    TritonError,
    TritonPool,
)
from tritonasync.integrations.asgi import (
    CancelOnDisconnect,
    Health,
    TritonLifespan,
    error_response,
    exception_handlers,
)

PAGE = (Path(__file__).parent / "page.html").read_text("utf-8")
LARGEST_UPLOAD = 8 << 20  # bytes
LARGEST_IMAGE = 16_000_000  # pixels
MODELS = ("digits", "scenes", "sentences", "tokens")
DIGITS = [str(digit) for digit in range(10)]

triton = TritonLifespan(lambda: TritonPool(os.environ.get("TRITON_URL", "localhost:8001")))
app = FastAPI(title="tritonasync", lifespan=triton, exception_handlers=exception_handlers())
app.add_middleware(CancelOnDisconnect)
app.mount("/health", Health(triton, *MODELS))

# --- what requests are given ----------------------------------------------------------------------


def classifier(pool: TritonPool) -> Classifier:
    return pool.classifier("digits", labels=DIGITS, max_pixels=LARGEST_IMAGE)


def detector(pool: TritonPool) -> Detector:
    return pool.detector(
        "scenes",
        labels=DIGITS,
        decode="yolov8",
        score_threshold=0.4,
        class_agnostic=True,
        max_pixels=LARGEST_IMAGE,
    )


def generator(pool: TritonPool) -> Generator:
    return pool.generator("tokens")


async def upload(request: Request) -> bytes:
    """The request's body; of one that is too long, no more than that is read."""
    length = request.headers.get("content-length", "0")
    if int(length) > LARGEST_UPLOAD:
        raise too_long(f"{int(length):,}")
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > LARGEST_UPLOAD:
            raise too_long("more")
    return bytes(received)


def too_long(given: str) -> HTTPException:
    return HTTPException(413, f"expected {LARGEST_UPLOAD:,} bytes at most, got {given}")


Image = Annotated[bytes, Depends(upload)]
Digits = Annotated[Classifier, Depends(triton.provide(classifier))]
Scenes = Annotated[Detector, Depends(triton.provide(detector))]
Sentences = Annotated[Encoder, Depends(triton.provide(lambda pool: pool.encoder("sentences")))]
Tokens = Annotated[Generator, Depends(triton.provide(generator))]
Text = Annotated[str, Query(min_length=1, max_length=1000)]

# --- pages ----------------------------------------------------------------------------------------


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


@app.post("/classify")
async def classify(image: Image, digits: Digits) -> Mapping[str, object]:
    return (await digits.one(image)).to_dict()


@app.post("/detect")
async def detect(image: Image, scenes: Scenes) -> Mapping[str, object]:
    return (await scenes.one(image)).to_dict()


@app.post("/embed")
async def embed(
    texts: Annotated[list[str], Body(embed=True, min_length=1, max_length=64)],
    sentences: Sentences,
) -> dict[str, list[list[float]]]:
    return {"vectors": (await sentences(texts)).tolist()}


@app.get("/generate")
async def generate(
    prompt: Text,
    tokens: Tokens,
    max_tokens: Annotated[int, Query(ge=1, le=2000)] = 100,
    delay_ms: Annotated[float, Query(ge=0, le=1000)] = 0,
) -> StreamingResponse:
    pieces = tokens(prompt, MAX_TOKENS=max_tokens, DELAY_MS=delay_ms)
    first = await anext(pieces, "")  # what fails before it can still be answered with a status
    return StreamingResponse(
        events(pieces, first), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


async def events(pieces: ResponseStream[str], first: str) -> AsyncIterator[str]:
    """Tell pieces as they come; who hangs up ends the stream."""
    async with pieces:
        yield event("piece", first)
        try:
            async for piece in pieces:
                yield event("piece", piece)
        except TritonError as error:
            yield event("failure", json.loads(error_response(error).body)["detail"])
        else:
            yield event("end", "")


def event(name: str, data: str) -> str:
    # As JSON, since a line break would end the data.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
