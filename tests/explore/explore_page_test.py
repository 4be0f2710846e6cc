"""The page in a real browser: browse, decode, generate, interpolate, paint and impute."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.conftest import ROOT
from tests.support import generator_runs

SECONDS = 60  # to wait for a program to be compiled on a busy machine
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory, program_env):
    """Starts the program on a run and returns its address; all are ended afterwards."""
    processes = []

    def start(run):
        command = [sys.executable, "-m", "functa.explore", str(run)]
        process = subprocess.Popen(
            command,
            env=program_env,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        line = process.stdout.readline()
        found = re.match(r"(http://\S+) shows", line)
        assert found, line
        return found[1]

    yield start
    for process in processes:
        process.terminate()
        assert process.communicate(timeout=60)[0] == ""  # nothing went wrong in it
        assert process.returncode == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)


@pytest.fixture(scope="module")
def address(server, run):
    return server(run)


class Page:
    """The page in a headless browser."""

    def __init__(self, address, width=1200, scheme="light"):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.driver.get(address)
        self.wait(lambda: self.script("return document.body.dataset.ready !== undefined"))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        messages = self.driver.get_log("browser")
        self.driver.quit()
        # A question that is refused is told on the page, and here too.
        told = [one for one in messages if "400 (Bad Request)" not in one["message"]]
        if kind is None:
            assert told == []

    def script(self, text, *arguments):
        return self.driver.execute_script(text, *arguments)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, ready):
        return WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: ready())

    def click(self, selector):
        self.one(selector).click()

    def press(self, panel):
        """The button of a panel's form, and waits for what it does."""
        self.click(f"#{panel} form > button:not([type])")
        self.wait(lambda: self.one(f"#{panel} form > button:not([type])").is_enabled())

    def choose(self, panel, name, value):
        Select(self.one(f"#{panel} [name={name}]")).select_by_value(value)

    def enter(self, panel, name, value):
        """As a person types it, which no attribute of the field keeps from being sent."""
        field = self.one(f"#{panel} [name={name}]")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def pixels(self, selector):
        """[[r, g, b, a], ...] of what is shown by each image."""
        return self.script(
            """return [...document.querySelectorAll(arguments[0])].map((image) => {
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              canvas.getContext("2d").drawImage(image, 0, 0);
              return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
            })""",
            selector,
        )

    def size(self, selector):
        return self.script(
            "const image = document.querySelector(arguments[0]); return [image.naturalWidth, image.naturalHeight]",
            selector,
        )

    def error(self, panel):
        return self.one(f"#{panel} .error").text

    def keep(self, name):
        """A screenshot for who wants to look, in the folder that FUNCTA_TEST_SCREENSHOTS names."""
        if folder := os.environ.get("FUNCTA_TEST_SCREENSHOTS"):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            assert self.driver.save_screenshot(f"{folder}/{name}.png")

    def overflows(self):
        root = "document.documentElement"
        return self.script(f"return {root}.scrollWidth > {root}.clientWidth")


@pytest.fixture
def page(address):
    with Page(address) as page:
        yield page


def test_browsing_and_decoding(page):
    assert page.one("h1").text == "digits-tiny"
    assert len(page.all("#records .thumb")) == 48
    assert len(page.all("#records .thumb img")) == 96  # originals beside
    first = page.pixels("#records .thumb img")
    assert len(set(map(tuple, first))) > 60
    page.click("#next")
    page.wait(lambda: page.one("#rows").text == "rows 48 to 95 of 96")
    assert page.pixels("#records .thumb img") != first
    assert not page.one("#next").is_enabled()
    page.click("#previous")
    page.wait(lambda: page.one("#rows").text == "rows 0 to 47 of 96")
    assert page.pixels("#records .thumb img") == first
    page.choose("browse", "class", "3")
    page.wait(lambda: len(page.all("#records .thumb")) < 48)
    captions = {thumb.text.splitlines()[0] for thumb in page.all("#records .thumb")}
    assert captions == {"class 3"}
    page.enter("browse", "start", 500)
    page.press("browse")
    assert page.error("browse") == "start=500 must be from 0 to 95"
    page.click("#records .thumb")
    assert "class 3" in page.one("#chosen").text
    page.click("#to-decode")
    page.wait(lambda: len(page.all("#decoded img")) == 3)
    assert page.size("#decoded img") == [64, 64]
    images = page.pixels("#decoded img")
    page.script(
        "const s = document.querySelector('#decode [name=scale]'); s.value = 16; s.dispatchEvent(new Event('input'))"
    )
    page.wait(lambda: page.size("#decoded img") == [128, 128])
    assert page.pixels("#decoded img")[:2] != images[:2]
    assert page.pixels("#decoded img")[2] == images[2]
    page.keep("decode")


def test_generating(page):
    page.click("#tab-generate")
    page.enter("generate", "count", 12)
    page.press("generate")
    assert len(page.all("#samples .thumb")) == 12
    first = page.pixels("#samples img")
    assert page.size("#samples img") == [64, 64]
    assert len(set(map(tuple, first))) == 12
    page.choose("generate", "class", "7")
    page.press("generate")
    captions = {thumb.text.splitlines()[0] for thumb in page.all("#samples .thumb")}
    assert captions == {"class 7"}
    assert page.pixels("#samples img")[7] == first[7]  # the same number, class and seed
    page.enter("generate", "seed", 5)
    page.press("generate")
    assert page.pixels("#samples img")[7] != first[7]
    page.script("document.querySelector('#generate form').noValidate = true")
    page.enter("generate", "count", 1000)
    page.press("generate")
    assert page.error("generate") == "count=1000 must be from 1 to 100"
    page.keep("generate")


def test_interpolating(page):
    page.click("#tab-strip")
    page.press("strip")
    assert "Choose two images first" in page.error("strip")
    page.click("#tab-generate")
    page.enter("generate", "count", 3)
    page.press("generate")
    page.all("#samples .thumb")[1].click()
    page.click("#to-first")
    page.click("#tab-browse")
    page.click("#records .thumb")
    page.click("#to-last")
    page.enter("strip", "count", 5)
    page.press("strip")
    assert page.error("strip") == ""
    assert len(page.all("#frames img")) == 5
    frames = page.pixels("#frames img")
    assert len(set(map(tuple, frames))) == 5
    assert page.one("#at").text == "3 of 5"
    (middle,) = page.pixels("#between")
    assert middle == frames[2]
    page.one("#position").send_keys(Keys.ARROW_RIGHT)
    assert page.one("#at").text == "4 of 5"
    assert page.pixels("#between") == [frames[3]]
    (sample,) = page.pixels("#first img")
    assert max(abs(a - b) for a, b in zip(sample, frames[0], strict=True)) <= 1
    page.keep("strip")


def test_painting_and_imputing(page):
    page.click("#tab-impute")
    page.wait(lambda: "0 of 64" in page.one("#mask-note").text)
    page.press("impute")
    assert "nothing is hidden" in page.error("impute")

    def canvas():
        return page.script("return document.querySelector('#mask').toDataURL()")

    def drag(*places):
        """Places in pixels of the image, of 8 x 8."""
        mask = page.one("#mask")
        box = mask.rect
        actions = webdriver.ActionChains(page.driver)
        for k, (row, column) in enumerate(places):
            x, y = (int((at + 0.5) * box["width"] / 8 - box["width"] / 2) for at in (column, row))
            actions.move_to_element_with_offset(mask, x, y)
            if not k:
                actions.click_and_hold()
        actions.release().perform()

    clear = canvas()
    page.script("window.scrollTo(0, 250)")
    page.script(
        "const b = document.querySelector('#brush'); b.value = 1; b.dispatchEvent(new Event('input'))"
    )
    drag((2, 1), (2, 6))
    page.wait(lambda: "6 of 64" in page.one("#mask-note").text)
    painted = canvas()
    assert painted != clear
    page.click("#uncover")
    drag((2, 6))
    page.wait(lambda: "5 of 64" in page.one("#mask-note").text)
    page.click("#uncover")
    page.click("#most")
    assert "58 of 64" in page.one("#mask-note").text
    page.click("#clear")
    assert canvas() == clear
    page.one("#mask").send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.SPACE)
    page.wait(lambda: "1 of 64" in page.one("#mask-note").text)
    page.click("#clear")
    drag((0, 1), (7, 1), (7, 2), (0, 2))
    page.wait(lambda: "16 of 64" in page.one("#mask-note").text)
    page.enter("impute", "draws", 3)
    page.enter("impute", "steps", 3)
    page.press("impute")
    assert page.error("impute") == ""
    assert len(page.all("#draws img")) == 3
    captions = [caption.text for caption in page.all("#imputed figcaption")]
    assert captions[0] == "seen"
    assert all(re.fullmatch(r".+, [\d.]+ dB", caption) for caption in captions[1:])
    seen, without, draw, mean = page.pixels("#imputed img")
    alpha = [seen[4 * k + 3] for k in range(64)]
    assert alpha == [0 if k % 8 in (1, 2) else 255 for k in range(64)]
    for image in (without, draw, mean):
        shown = [k for k in range(64) if alpha[k]]
        assert [image[4 * k] for k in shown] == [seen[4 * k] for k in shown]
    draws = page.pixels("#draws img")
    assert len(set(map(tuple, draws))) == 3
    page.keep("impute")
    page.script("document.querySelector('#impute [name=row]').value = 3")  # not shown yet
    page.press("impute")
    assert "the mask lies on another image" in page.error("impute")
    page.click("#tab-browse")
    page.all("#records .thumb")[2].click()
    page.click("#to-impute")
    page.wait(lambda: "0 of 64" in page.one("#mask-note").text)
    assert page.one("#impute [name=row]").get_attribute("value") == "2"
    assert canvas() not in (clear, painted)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_is_enough(address, scheme):
    with Page(address, width=360, scheme=scheme) as page:
        for panel in ("browse", "decode", "generate", "strip", "impute"):
            page.click(f"#tab-{panel}")
            assert page.one(f"#{panel}").is_displayed()
            assert not page.overflows()
        page.click("#tab-browse")
        page.click("#records .thumb")
        assert not page.overflows()
        page.keep(f"narrow_{scheme}")
        background = page.script("return getComputedStyle(document.body).backgroundColor")
        light = [int(part) > 128 for part in re.findall(r"\d+", background)[:3]]
        assert light == [scheme == "light"] * 3


def test_every_field_and_button_has_a_name(page):
    nameless = page.script(
        """const text = (nodes) => [...nodes].some((node) => node.nodeType === 3 && node.data.trim());
          return [...document.querySelectorAll("button, input, select, canvas, img")].filter((element) =>
          !([...element.labels ?? []].some((label) => text(label.childNodes)) || element.ariaLabel
            || element.matches("button") && element.textContent.trim() || element.alt
            || element.closest("#chosen[hidden]") || element.id === "between"))
          .map((element) => element.outerHTML)"""
    )
    assert nameless == []


def test_without_a_generator_the_page_says_so(server, run, tmp_path):
    (tmp_path / "run").mkdir()
    for part in ("config.json", "meta_learn", "functaset"):
        (tmp_path / "run" / part).symlink_to(run / part)
    with Page(server(tmp_path / "run")) as page:
        page.click("#records .thumb")
        assert page.one("#to-decode").is_displayed()
        assert not page.one("#to-first").is_displayed()
        for panel in ("generate", "strip", "impute"):
            page.click(f"#tab-{panel}")
            assert "the stage generate of" in page.one(f"#{panel} .missing").text
            assert not page.one(f"#{panel} form").is_displayed()
        page.click("#to-decode")
        page.wait(lambda: len(page.all("#decoded img")) == 3)
        page.keep("no_generator")
