"""The explore page in a headless browser without a network, and what it computes itself."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from functa.explore import widgets
from tests.conftest import ROOT
from tests.support import generator_runs

SECONDS = 180  # a busy machine compiles for a while
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TAB, PRIMARY = "button[role=tab]", "button.primary"


@pytest.fixture(scope="module")
def address(tmp_path_factory, program_env):
    run = generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)
    command = [sys.executable, "-m", "functa.cli", "explore", str(run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=program_env, text=True, stdout=pipe) as process:
        line = process.stdout.readline()
        yield re.match(r"(http://127\.0\.0\.1:\d+/) shows", line)[1]
        process.terminate()
        assert process.wait(timeout=180) == 0


@pytest.fixture(scope="module")
def driver(address):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1400,1400",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get(address)
    yield driver
    driver.quit()


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, SECONDS).until(condition)


def click(driver, text, selector="button"):
    wait(
        driver,
        lambda d: d.execute_script(
            "const b = [...document.querySelectorAll(arguments[1])]"
            ".find(e => e.innerText.trim() === arguments[0] && e.offsetParent);"
            "if (!b) return false; b.click(); return true;",
            text,
            selector,
        ),
    )


def visible_images(driver):
    """Number of loaded images on the visible panel, without the thumbnail of the selection."""
    return driver.execute_script(
        "return [...document.querySelectorAll('img')].filter(e => e.offsetParent"
        " && e.complete && e.naturalWidth > 0 && !e.closest('#selection')).length"
    )


def requested_urls(driver):
    """URLs that the page has requested."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return {event["params"]["request"]["url"] for event in sent}


@pytest.mark.slow
@pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
)
def test_every_panel_works_without_a_network(driver, address, tmp_path):
    wait(driver, lambda d: visible_images(d) >= 24)  # Browse; images out of sight are not loaded
    click(driver, "Next")
    wait(driver, lambda d: "test 95" in d.page_source)
    click(driver, "Random test image")
    wait(driver, lambda d: "Selected" in d.find_element("id", "selection").text)
    click(driver, "Decode", TAB)
    wait(driver, lambda d: visible_images(d) == 3)
    click(driver, "Picture", TAB)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    file = "input[type=file]"
    wait(driver, lambda d: d.find_elements("css selector", file))[0].send_keys(
        str(tmp_path / "picture.png")
    )
    wait(driver, lambda d: visible_images(d) == 5)
    assert "own picture" in driver.find_element("id", "selection").text
    click(driver, "Generate", TAB)
    click(driver, "Generate", PRIMARY)
    wait(driver, lambda d: visible_images(d) == 30)
    click(driver, "Interpolate", TAB)
    click(driver, "Interpolate", PRIMARY)
    wait(driver, lambda d: "Choose a first and a last image" in d.page_source)
    for number, name in enumerate(("First", "Last"), 1):
        click(driver, f"{name}: use the selected image")
        wait(driver, lambda d, number=number: visible_images(d) == number)
    click(driver, "Interpolate", PRIMARY)
    wait(driver, lambda d: visible_images(d) >= 19)
    click(driver, "Inpaint", TAB)
    click(driver, "Left half")
    time.sleep(3)  # the editor gives no sign when it has drawn its layer
    click(driver, "Inpaint", PRIMARY)
    wait(driver, lambda d: visible_images(d) == 10)
    assert "sample 8" in driver.page_source
    urls = requested_urls(driver)
    assert any(url.startswith(address) for url in urls)
    assert {url for url in urls if not url.startswith((address, "data:", "blob:"))} == set()


def test_pixels_are_hidden_if_half_of_them_is_painted_over():
    layer = np.zeros((6, 8, 4), np.uint8)  # 3 x 4 pixels, each of 2 x 2
    layer[:3, :2, 3] = 255
    layer[2:4, 7, 3] = 255
    layer[5, 5, 3] = 255
    hidden = widgets.hidden_pixels({"layers": [layer]}, (3, 4))
    assert np.argwhere(hidden).tolist() == [[0, 0], [1, 0], [1, 3]]
    assert not widgets.hidden_pixels({"layers": []}, (3, 4)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_have_three_channels_of_bytes(channels):
    image = np.linspace(0, 1, 2 * 3 * channels, dtype=np.float32).reshape(2, 3, channels)
    picture = widgets.to_picture(image)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.rint(image * 255) * np.ones(3))


def test_latent_picture_is_red_above_and_blue_below_zero():
    latents = np.zeros((1, 1, 4), np.float32)
    latents[0, 0] = [1, -1, 0, 0.5]
    tiles = widgets.latent_picture(latents)
    assert tiles.shape == (132, 132, 3)
    red, blue, white = tiles[0, 0].astype(int), tiles[0, -1].astype(int), tiles[-1, 0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert white.tolist() == [255, 255, 255]
