"""The explore page in a headless browser without a network: every panel shows images."""

import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.support import generator_runs

SECONDS = 90  # for a program to compile on a busy machine
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory, program_env):
    run = generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)
    command = [sys.executable, "-m", "functa.cli", "explore", str(run)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=program_env, text=True, stdout=pipe) as process:
        line = process.stdout.readline()
        yield re.match(r"(http://127\.0\.0\.1:\d+/) shows", line)[1]
        process.terminate()
        assert process.wait(timeout=60) == 0


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


def test_every_panel_shows_images(driver):
    wait(driver, lambda d: visible_images(d) >= 24)  # Browse
    click(driver, "Random test image")
    wait(driver, lambda d: "Selected" in d.find_element("id", "selection").text)
    click(driver, "Decode", "button[role=tab]")
    wait(driver, lambda d: visible_images(d) >= 3)
    click(driver, "Generate", "button[role=tab]")
    click(driver, "Generate", "button.primary")
    wait(driver, lambda d: visible_images(d) >= 30)
    click(driver, "Interpolate", "button[role=tab]")
    click(driver, "Two random test images")
    wait(driver, lambda d: visible_images(d) >= 2)
    click(driver, "Interpolate", "button.primary")
    wait(driver, lambda d: visible_images(d) >= 12)
    click(driver, "Inpaint", "button[role=tab]")
    click(driver, "Left half")
    time.sleep(3)  # the editor gives no sign when it has drawn its layer
    click(driver, "Inpaint", "button.primary")
    wait(driver, lambda d: visible_images(d) >= 8)
