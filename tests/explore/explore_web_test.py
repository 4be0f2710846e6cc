"""The page's server: its questions over HTTP, what it refuses, and the program that serves it."""

import base64
import configparser
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image

from functa.explore import __main__, opened, web
from functa.explore.explorer import Explorer
from functa.runtime import image_io
from tests.conftest import ROOT
from tests.support import generator_runs

SETTINGS = {"guidance": 1.5, "steps": 4, "solver": "heun"}
SAMPLE = {"seed": 0, "number": 2, "class": None, "settings": SETTINGS}
HIDDEN = ["11110000"] * 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)


@pytest.fixture(scope="module")
def explorer(run):
    return Explorer(opened.open_run(run, data_dir=None))


class Client:
    """A server of an explorer on a free port, in a thread."""

    def __init__(self, explorer):
        config = uvicorn.Config(web.make_app(explorer), log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.socket = __main__.listen(None)
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def fetch(self, path, body=None, **headers):
        """(status, headers, content) of a GET, or of a POST with a body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def ask(self, question, body):
        """(status, answer)."""
        status, _, content = self.fetch(
            f"/api/{question}", json.dumps(body), Content_Type="application/json"
        )
        return status, json.loads(content)

    def answer(self, question, body):
        status, answer = self.ask(question, body)
        assert status == 200, answer
        return answer

    def error(self, question, body):
        status, answer = self.ask(question, body)
        assert (status, list(answer)) == (400, ["error"])
        return answer["error"]


@pytest.fixture(scope="module")
def client(explorer):
    client = Client(explorer)
    yield client
    client.close()


def test_the_page_is_whole_and_fetches_nothing_from_elsewhere(client):
    status, headers, page = client.fetch("/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    texts, found = {"/": page.decode()}, re.findall(r'(?:src|href)="([\w.]+)"', page.decode())
    assert len(found) >= 3
    while found:
        name = f"/{found.pop()}"
        if name not in texts:
            status, headers, content = client.fetch(name)
            assert status == 200, name
            assert headers["X-Content-Type-Options"] == "nosniff"
            texts[name] = content.decode()
            found += re.findall(r'from "\./([\w.]+)"', texts[name])
    assert {"/explore.js", "/ask.js", "/paint.js", "/style.css", "/explore.css"} <= set(texts)
    for name, text in texts.items():
        assert not re.findall(r"https?:|//\w+\.\w+/|@import|url\(", text), name
    # What the scripts look for is on the page.
    wanted = set(re.findall(r'find\("#([\w-]+)"', "".join(texts.values())))
    ids = re.findall(r'id="([\w-]+)"', texts["/"])
    assert len(wanted) > 20
    assert wanted <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_files_of_the_page_are_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["functa.explore"].split(", ")
    folder = ROOT / "functa" / "explore"
    named = {path.name for pattern in patterns for path in folder.glob(pattern)}
    assert {name for name, _ in web._FILES.values()} == named


def test_facts(client, run):
    status, _, content = client.fetch("/api/run")
    facts = json.loads(content)
    assert status == 200
    assert facts["name"] == "digits-tiny"
    assert facts["image_shape"] == [8, 8, 1]
    assert facts["splits"]["train"]["examples"] == 192
    assert facts["largest_scale"] == 16
    assert facts["generator"]["usual"] == SETTINGS
    assert facts["generator"]["missing"] == facts["originals"]["missing"] == ""


def pixels(uri):
    """[h, w, ...] uint8 of a data URI."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image)


def test_browse(client, explorer):
    page = client.answer("browse", {"split": "train", "start": 3, "count": 4, "class": None})
    direct = explorer.browse("train", start=3, count=4, label=None)
    assert page["following"] == 7
    assert page["note"] == ""
    for k, item in enumerate(page["items"]):
        assert (item["row"], item["id"], item["copy"]) == (3 + k, (3 + k) // 2, (3 + k) % 2)
        np.testing.assert_array_equal(
            pixels(item["image"]), image_io.to_uint8(direct.images[k])[..., 0]
        )
        np.testing.assert_array_equal(pixels(item["original"]), direct.originals[k, ..., 0])
    label = page["items"][0]["class"]
    page = client.answer("browse", {"split": "train", "start": 0, "count": 5, "class": label})
    assert {item["class"] for item in page["items"]} == {label}


def test_decode(client, explorer):
    of = {"split": "test", "row": 4}
    made = client.answer("decode", {"of": of, "scale": 3})
    assert made["shape"] == [24, 24]
    assert pixels(made["image"]).shape == pixels(made["bicubic"]).shape == (24, 24)
    assert pixels(made["original"]).shape == (8, 8)
    made = client.answer("decode", {"of": SAMPLE, "scale": 2})
    assert (made["original"], made["class"], made["psnr"]) == (None, -1, None)


def test_sample(client, explorer):
    question = {"settings": SETTINGS, "seed": 3, "count": 12, "scale": 2}
    items = client.answer("sample", question | {"class": "all"})["items"]
    assert [item["class"] for item in items] == [k % 10 for k in range(12)]
    assert [item["number"] for item in items] == list(range(12))
    assert pixels(items[0]["image"]).shape == (16, 16)
    one = {name: items[7][name] for name in ("seed", "number", "class", "settings")}
    again = client.answer("decode", {"of": one, "scale": 2})
    np.testing.assert_array_equal(pixels(again["image"]), pixels(items[7]["image"]))
    items = client.answer("sample", question | {"class": 7, "count": 8})["items"]
    assert items[7]["class"] == 7
    assert items[7]["image"] == again["image"] or one["class"] == 7
    items = client.answer("sample", question | {"class": "any", "count": 1})["items"]
    assert items[0]["class"] is None


def test_strip(client):
    ends = {"first": SAMPLE, "last": {"split": "test", "row": 4}}
    made = client.answer("strip", ends | {"count": 4, "settings": SETTINGS, "scale": 2})
    assert len(made["images"]) == 4
    assert len(made["ends"]) == 2
    difference = pixels(made["images"][0]).astype(int) - pixels(made["ends"][0])
    assert np.abs(difference).max() <= 1


def test_impute(client):
    image = client.answer("test_image", {"row": 9})["image"]
    numbers = {"row": 9, "draws": 2, "steps": 2, "seed": 0}
    made = client.answer("impute", numbers | {"hidden": HIDDEN})
    assert len(made["draws"]) == 2
    assert set(made["psnr"]) == {"without", "draw", "mean"}
    for name in ("without", "mean"):
        np.testing.assert_array_equal(pixels(made[name])[:, 4:], pixels(image)[:, 4:])
    assert np.all(pixels(made["seen"])[:, :4, 3] == 0)


BROWSE = {"split": "test", "start": 0, "count": 4, "class": None}
DECODE = {"of": {"split": "test", "row": 0}, "scale": 2}
DRAW = {"class": 3, "settings": SETTINGS, "seed": 0, "count": 2, "scale": 1}
FILL = {"row": 0, "hidden": HIDDEN, "draws": 2, "steps": 2, "seed": 0}
STRIP = {"first": SAMPLE, "last": SAMPLE, "count": 3, "settings": SETTINGS, "scale": 1}


@pytest.mark.parametrize(
    ("question", "body", "message"),
    [
        ("browse", [], "the question must be a JSON object, not []"),
        ("browse", BROWSE | {"rows": 2}, "the question has an unknown 'rows'"),
        ("browse", {"split": "test"}, "the question has no start; the question has no count"),
        ("browse", BROWSE | {"split": "../train"}, "no split '../train'; there are train,"),
        ("browse", BROWSE | {"split": 3}, "split must be a word, not 3"),
        ("browse", BROWSE | {"start": -1}, "start=-1 must be from 0 to 95"),
        ("browse", BROWSE | {"start": 1.5}, "start must be a whole number, not 1.5"),
        ("browse", BROWSE | {"start": True}, "start must be a whole number, not True"),
        ("browse", BROWSE | {"start": 10**400}, "start must be a whole number, not 1000000000"),
        ("browse", BROWSE | {"count": 5000}, "count=5000 must be from 1 to 100"),
        ("browse", BROWSE | {"class": 10}, "class=10 must be from 0 to 9"),
        ("decode", DECODE | {"scale": -2}, "scale=-2 must be from 1 to 16"),
        ("decode", DECODE | {"scale": 17}, "scale=17 must be from 1 to 16"),
        ("decode", DECODE | {"of": {"split": "test", "row": 96}}, "has the rows 0 to 95, not 96"),
        ("decode", DECODE | {"of": None}, "of must be a JSON object, not None"),
        ("decode", DECODE | {"of": SAMPLE | {"class": 99}}, "class=99 must be from 0 to 10"),
        ("decode", DECODE | {"of": SAMPLE | {"settings": {}}}, "settings has no guidance"),
        ("sample", DRAW | {"class": "three"}, "class must be a whole number, not 'three'"),
        ("sample", DRAW | {"class": 10}, "class=10 must be from 0 to 9"),
        ("sample", DRAW | {"class": -1}, "class=-1 must be from 0 to 9"),
        ("sample", DRAW | {"count": 10**9}, "count=1000000000 must be from 1 to 100"),
        ("sample", DRAW | {"count": 0}, "count=0 must be from 1 to 100"),
        ("sample", DRAW | {"seed": -1}, "seed=-1 must be from 0"),
        (
            "sample",
            DRAW | {"settings": SETTINGS | {"guidance": -1}},
            "guidance=-1.0 must be from 0",
        ),
        ("sample", DRAW | {"settings": SETTINGS | {"guidance": float("nan")}}, "guidance=nan must"),
        ("sample", DRAW | {"settings": SETTINGS | {"steps": 10**6}}, "steps=1000000 must be from"),
        (
            "sample",
            DRAW | {"settings": SETTINGS | {"solver": "magic"}},
            "solver='magic': known are",
        ),
        ("strip", STRIP | {"count": 1000}, "count=1000 must be from 3 to 33"),
        ("strip", STRIP | {"last": {"split": "test"}}, "last has no row"),
        ("test_image", {"row": 96}, "the test images are 0 to 95, not 96"),
        ("impute", FILL | {"hidden": "1111"}, "hidden must be rows of 0 and 1"),
        ("impute", FILL | {"hidden": []}, "hidden must be rows of 0 and 1"),
        (
            "impute",
            FILL | {"hidden": ["01", "1"]},
            "hidden must be rows of 0 and 1, all of one length",
        ),
        ("impute", FILL | {"hidden": ["0120"]}, "hidden must be rows of 0 and 1"),
        ("impute", FILL | {"hidden": ["1"]}, "the mask has (1, 1) pixels, the image (8, 8)"),
        ("impute", FILL | {"hidden": ["0" * 8] * 8}, "nothing is hidden: paint over some pixels"),
        ("impute", FILL | {"draws": 17}, "draws=17 must be from 1 to 16"),
    ],
)
def test_bad_questions_are_told(client, question, body, message):
    assert message in client.error(question, body)


def test_what_is_no_question_is_told(client):
    kind = {"Content_Type": "application/json"}
    told = [
        ('{"split"', kind, "a question must be JSON"),
        ("[" * 100_000, kind, "a question must be JSON"),
        (b"\xff\xfe{}", kind, "a question must be JSON"),
        (" " * (1 << 21), kind, "a question has at most 1,048,576 bytes"),
        # What a form of another site can send without asking this server first.
        (json.dumps(BROWSE), {"Content_Type": "text/plain"}, "must be application/json"),
    ]
    for body, headers, message in told:
        status, _, content = client.fetch("/api/browse", body, **headers)
        assert status == 400
        assert message in json.loads(content)["error"]
    assert client.fetch("/api/browse")[0] == 405


@pytest.mark.parametrize(
    "path",
    ["/setup.cfg", "/../setup.cfg", "/%2e%2e/web.py", "/web.py", "//etc/passwd", "/api/", "/docs"],
)
def test_nothing_else_is_served(client, path):
    assert client.fetch(path)[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:80", 200),
        ("localhost", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.", 400),
        ("", 400),
    ],
)
def test_only_this_machine_is_a_host(client, host, status):
    assert client.fetch("/", Host=host)[0] == status
    assert client.fetch("/api/run", Host=host)[0] == status


def test_questions_are_answered_one_at_a_time(explorer, monkeypatch):
    busy, most, hold = [], [], threading.Event()

    def slow(row):
        busy.append(row)
        most.append(len(busy))
        explorer.doing = f"looking at {row}"
        assert hold.wait(60)
        time.sleep(0.01)
        busy.remove(row)
        return np.zeros((8, 8, 1), np.uint8), 0

    monkeypatch.setattr(explorer, "test_image", slow)
    monkeypatch.setattr(web, "_MOST_WAITING", 4)
    client, answers = Client(explorer), []
    try:
        threads = [
            threading.Thread(
                target=lambda row=row: answers.append(client.ask("test_image", {"row": row}))
            )
            for row in range(6)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) == 2)
        # The page and what is going on are there meanwhile; two were too many.
        assert [status for status, _ in answers] == [503, 503]
        assert "4 questions wait already" in answers[0][1]["error"]
        assert client.fetch("/")[0] == 200
        assert json.loads(client.fetch("/api/doing")[2])["doing"] == f"looking at {busy[0]}"
        hold.set()
        for thread in threads:
            thread.join(60)
        assert sorted(status for status, _ in answers) == [200] * 4 + [503] * 2
        assert max(most) == 1
        assert json.loads(client.fetch("/api/doing")[2])["doing"] == ""
    finally:
        hold.set()
        client.close()


def test_who_leaves_is_not_worked_for(explorer, monkeypatch):
    seen, hold = [], threading.Event()

    def slow(row):
        seen.append(row)
        assert hold.wait(60)
        return np.zeros((8, 8, 1), np.uint8), 0

    monkeypatch.setattr(explorer, "test_image", slow)
    client = Client(explorer)

    def send(row):
        body = json.dumps({"row": row})
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        connection.request("POST", "/api/test_image", body, {"Content-Type": "application/json"})
        return connection

    try:
        first = send(0)
        until(lambda: seen == [0])
        send(1).close()
        time.sleep(0.3)  # until the server has noticed
        third = send(2)
        hold.set()
        assert third.getresponse().status == first.getresponse().status == 200
        assert seen == [0, 2]
        first.close()
        third.close()
    finally:
        hold.set()
        client.close()


@pytest.mark.parametrize("error", [MemoryError("no room for 3 GiB"), AttributeError("no key")])
def test_what_fails_is_told_and_logged(explorer, client, monkeypatch, caplog, error):
    def fail(row):
        raise error

    monkeypatch.setattr(explorer, "test_image", fail)
    sentence = f"{type(error).__name__}: {error}"
    assert client.ask("test_image", {"row": 0}) == (500, {"error": sentence})
    assert sentence in caplog.text


def until(ready, seconds=60.0):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


# The program.


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Calls the program, which must not serve, and returns what it says."""
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: pytest.fail("it serves"))

    def told(*arguments):
        with pytest.raises(SystemExit) as ended:
            __main__.main(list(map(str, arguments)))
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return told


def copy_of(run, folder, *parts):
    folder.mkdir()
    for part in parts:
        (folder / part).symlink_to(run / part)
    return folder


def test_what_is_no_run_is_told(run, tmp_path, refusal):
    assert f"there is no folder {tmp_path / 'no'}" in refusal(tmp_path / "no")
    assert "is not the directory of a run" in refusal(tmp_path)
    no_field = copy_of(run, tmp_path / "no_field", "config.json", "functaset")
    assert "the stage meta_learn of" in refusal(no_field)
    no_set = copy_of(run, tmp_path / "no_set", "config.json", "meta_learn")
    assert "no complete functaset there" in refusal(no_set)
    other = generator_runs.make(tmp_path / "other", **{"field.width": 8})
    mixed = copy_of(run, tmp_path / "mixed", "config.json", "meta_learn")
    (mixed / "functaset").symlink_to(other / "functaset")
    assert "was encoded with the field sha256:" in refusal(mixed)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "", "8e3", "٣"])
def test_what_is_no_port_is_told(run, refusal, port):
    assert "a port is a whole number from 1 to 65535" in refusal(run, f"--port={port}")


def test_a_port_that_is_taken_is_told_at_once(run, refusal):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refusal(run, f"--port={port}")
        assert f"port {port} of 127.0.0.1 cannot be used (Address already in use)" in told


def test_without_a_port_the_next_free_one_is_taken():
    with __main__.listen(None) as first, __main__.listen(None) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
        assert first.getsockname()[0] == "127.0.0.1"
        assert ports[0] < ports[1]


@pytest.mark.parametrize("name", ["uvicorn", "starlette"])
def test_without_the_library_the_way_out_is_told(run, refusal, monkeypatch, name):
    for module in list(sys.modules):
        if module.partition(".")[0] == name:
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "functa.explore.web")
    monkeypatch.delattr("functa.explore.web")
    told = refusal(run)
    assert f"the package {name} is not installed: launch/explore.sh installs it" in told


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_asked_to(run, program_env, number, busy):
    command = [sys.executable, "-m", "functa.explore", str(run)]
    process = subprocess.Popen(
        command,
        env=program_env,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        address = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows .+; Ctrl-C ends it\n", address)
        assert found, address + process.communicate(timeout=60)[1]
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", int(found[1]))
        ) as connection:
            if busy:  # much longer than anybody waits
                many = {"settings": SETTINGS | {"steps": 200}, "count": 100, "class": "all"}
                body = json.dumps(many | {"seed": 0, "scale": 8})
                connection.request(
                    "POST", "/api/sample", body, {"Content-Type": "application/json"}
                )
                time.sleep(0.5)
            process.send_signal(number)
            output, error = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "")
        assert "Traceback" not in error
    finally:
        process.kill()
