"""Someone drops an image on the page and sees boxes where the digits are."""

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from examples.demo import digits
from examples.demo.scenes import Scene, scenes

DROP = """
  const [where, name, type, base64] = arguments
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))
  const carried = new DataTransfer()
  carried.items.add(new File([bytes], name, { type }))
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector(where).dispatchEvent(
      new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }))
"""
PLACES = """
  const image = document.querySelector("#image").getBoundingClientRect()
  return [...document.querySelectorAll("#boxes rect")].map((rect) => {
    const box = rect.getBoundingClientRect()
    return [box.left - image.left, box.top - image.top, box.right - image.left,
            box.bottom - image.top].map((at, i) => at / (i % 2 ? image.height : image.width))
  })
"""


def scene(seed: int) -> Scene:
    return next(scenes(digits.held_out(), seed=seed))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def drop(page: Chrome, content: bytes, name: str = "scene.png", kind: str = "image/png") -> None:
    page.execute_script(DROP, "#drop", name, kind, base64.b64encode(content).decode())


def told(page: Chrome, state: str) -> str:
    """What the page says when it has come to a state."""
    line = page.find_element(By.ID, "told")
    WebDriverWait(page, 30).until(lambda _: line.get_dom_attribute("data-state") == state)
    return line.text


def labels(page: Chrome) -> list[str]:
    texts = page.find_elements(By.CSS_SELECTOR, "#boxes text")
    return [text.text.split()[0] for text in texts]


def picture(page: Chrome, name: str) -> None:
    """Keep a picture of the page, where ``TRITONASYNC_PICTURES`` says so."""
    if folder := os.environ.get("TRITONASYNC_PICTURES"):
        page.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.mark.parametrize(("zoom", "margin"), [(1, 0), (4, 0), (4, 160)])
def test_boxes_are_drawn_over_the_digits_of_an_image_that_is_dropped(page, zoom, margin):
    drawn = scene(17)
    image = drawn.image.repeat(zoom, 0).repeat(zoom, 1)
    paper = int(np.median(image))
    drop(page, png(np.pad(image, ((0, 0), (0, margin)), constant_values=paper)))
    assert told(page, "done") == f"{len(drawn.labels)} found"
    picture(page, f"dropped-{zoom}-{margin}")
    assert sorted(labels(page)) == sorted(str(label) for label in drawn.labels)
    places = np.array(sorted(page.execute_script(PLACES)))
    width, height = image.shape[1] + margin, image.shape[0]
    true = np.array(sorted((drawn.boxes * zoom / [width, height, width, height]).tolist()))
    np.testing.assert_allclose(places, true, atol=0.03)


def test_an_image_can_be_chosen_as_well(page, tmp_path):
    file = tmp_path / "scene.png"
    file.write_bytes(png(scene(6).image))
    page.find_element(By.ID, "file").send_keys(str(file))
    assert told(page, "done") == f"{len(scene(6).labels)} found"


def test_a_second_image_takes_the_place_of_the_first(page):
    drop(page, png(scene(17).image))
    told(page, "done")
    drop(page, png(scene(7).image))
    drop(page, png(scene(6).image))  # before the one before it is answered
    WebDriverWait(page, 30).until(
        lambda _: sorted(labels(page)) == sorted(str(label) for label in scene(6).labels)
    )
    assert told(page, "done") == f"{len(scene(6).labels)} found"


def test_what_is_no_image_is_told_and_no_boxes_are_left(page):
    drop(page, png(scene(17).image))
    told(page, "done")
    drop(page, b"these are words", "words.txt", "text/plain")
    words = told(page, "failure")
    assert "image" in words
    assert labels(page) == []
    assert not page.find_element(By.ID, "figure").is_displayed()
    picture(page, "no-image")


def test_an_image_that_is_too_large_is_told(page):
    drop(page, bytes((8 << 20) + 1))
    assert "8,388,608 bytes at most" in told(page, "failure")


def test_text_grows_as_it_comes(page):
    page.find_element(By.CSS_SELECTOR, "#ask button").click()
    text = page.find_element(By.ID, "text")
    WebDriverWait(page, 30).until(lambda _: len(text.text) > 30)
    first = text.text
    assert first.startswith("the song of the river")
    WebDriverWait(page, 30).until(lambda _: len(text.text) > len(first))
    picture(page, "text")


def test_the_page_has_nothing_to_complain_about(page):
    drop(page, png(scene(17).image))
    told(page, "done")
    assert page.get_log("browser") == []
