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


SAME_PLACE = """
  const [image, boxes] = ["#image", "#boxes"].map((name) =>
    document.querySelector(name).getBoundingClientRect())
  return ["left", "top", "width", "height"].every((side) => Math.abs(image[side] - boxes[side]) < 1)
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


def test_boxes_are_drawn_over_the_digits_of_a_photograph_that_lies_on_its_side(page):
    drawn, file = scene(17), io.BytesIO()
    image = Image.fromarray(drawn.image).resize((2048, 2048))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to be upright
    image.rotate(90).save(file, "jpeg", exif=exif)
    drop(page, file.getvalue(), "photograph.jpg", "image/jpeg")
    assert told(page, "done") == f"{len(drawn.labels)} found"
    picture(page, "photograph")
    places = np.array(sorted(page.execute_script(PLACES)))
    np.testing.assert_allclose(places, np.array(sorted((drawn.boxes / 128).tolist())), atol=0.03)


@pytest.mark.parametrize("size", [(900, 1000), (320, 568)])
@pytest.mark.parametrize("shape", [(128, 4000), (4000, 128)])
def test_an_image_of_any_shape_fits_on_the_screen_with_its_boxes_on_it(page, size, shape):
    narrow = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    try:
        drop(page, png(np.full(shape, 40, np.uint8)))
        told(page, "done")
        picture(page, f"shape-{size[0]}-{shape[0]}")
        width, height = page.execute_script(
            "const box = document.querySelector('#image').getBoundingClientRect();"
            "return [document.documentElement.scrollWidth, box.height]"
        )
        assert width <= size[0]
        assert height <= size[1]
        assert page.execute_script(SAME_PLACE)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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


def test_an_image_that_is_far_too_large_is_told(page):
    page.execute_script(
        "look(new File([new Uint8Array(100 << 20)], 'large.png', { type: 'image/png' }))"
    )
    assert told(page, "failure")
    picture(page, "far-too-large")


def test_an_error_that_is_no_json_is_told_with_its_status(page):
    page.execute_script(
        "window.fetch = async () =>"
        " new Response('oops', { status: 500, statusText: 'Internal Server Error' })"
    )
    drop(page, png(scene(17).image))
    assert told(page, "failure") == "Failed: 500 Internal Server Error"


def test_a_text_that_is_refused_is_told(page):
    page.execute_script("document.querySelector('#ask input').value = 'x'.repeat(1001)")
    page.execute_script("document.querySelector('#ask').dispatchEvent(new Event('submit'))")
    text = page.find_element(By.ID, "text")
    WebDriverWait(page, 30).until(lambda _: "refused" in text.text)


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
