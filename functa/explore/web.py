"""An Explorer as a web application: one page, and JSON questions that it asks.

Requests are answered one at a time, in the order they come. Only pages that this server sent can ask: questions
must be JSON and name this machine as their host, which pages of other sites cannot do.
"""

import importlib.resources
import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from functa.explore import asking
from functa.explore.drawing import MOST_SAMPLES, Sample
from functa.explore.explorer import Explorer
from functa.runtime import image_io

_MOST_BYTES = 1 << 20  # of a question: a mask of 1000 x 1000 pixels
_MOST_WAITING = 16
_HOSTS = ["127.0.0.1", "localhost"]
_HEADERS = {
    # Nothing is fetched from elsewhere, and nothing can be made to.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def _report_style() -> str:
    template = importlib.resources.files("functa.report") / "report.html.jinja"
    return template.read_text().split("<style>")[1].split("</style>")[0]


_FILES = {
    "/": ("page.html", "text/html"),
    "/explore.css": ("explore.css", "text/css"),
    "/explore.js": ("explore.js", "text/javascript"),
    "/ask.js": ("ask.js", "text/javascript"),
    "/run.js": ("run.js", "text/javascript"),
    "/impute.js": ("impute.js", "text/javascript"),
    "/paint.js": ("paint.js", "text/javascript"),
}


class Turns:
    """Calls of a thread of their own, one at a time; who waits may leave."""

    def __init__(self):
        self._lock, self._waiting = anyio.Lock(), 0

    async def take(self, request: Request, function: Callable[[], Any]) -> Any:
        """function(), or None where nobody waits for it any more.

        Raises:
          BusyError: too many wait already.
        """
        if self._waiting >= _MOST_WAITING:
            raise BusyError(f"{self._waiting} questions wait already: try again in a while")
        self._waiting += 1
        try:
            async with self._lock:
                if await request.is_disconnected():
                    return None
                return await anyio.to_thread.run_sync(function)
        finally:
            self._waiting -= 1


class BusyError(Exception):
    """More questions than can wait."""


def make_app(explorer: Explorer) -> Starlette:
    """The application; its answers to bad questions are {"error": a sentence} with status 400."""
    turns = Turns()
    questions = {
        "browse": browse,
        "decode": decode,
        "sample": sample,
        "strip": strip,
        "test_image": test_image,
        "impute": impute,
    }

    def question(function: Callable[[Explorer, Any], dict[str, Any]]):
        def answer(body: Any) -> dict[str, Any]:
            try:
                return function(explorer, body)
            finally:
                explorer.doing = ""

        async def ask(request: Request) -> Response:
            try:
                body = await _read(request)
                answered = await turns.take(request, lambda: answer(body))
            except ValueError as error:
                return _error(str(error), 400)
            except BusyError as error:
                return _error(str(error), 503)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except (
                Exception
            ) as error:  # a fault of ours: told on the page, and whole on the terminal
                logging.exception("a question could not be answered")
                return _error(f"{type(error).__name__}: {error}", 500)
            return JSONResponse(answered, headers=_HEADERS)

        return ask

    async def run(request: Request) -> Response:
        return JSONResponse(explorer.facts(), headers=_HEADERS)

    async def doing(request: Request) -> Response:
        return JSONResponse({"doing": explorer.doing}, headers=_HEADERS)

    routes = [
        *(Route(path, _file(*file)) for path, file in _FILES.items()),
        Route("/style.css", _text(_report_style(), "text/css")),
        Route("/api/run", run),
        Route("/api/doing", doing),
        *(
            Route(f"/api/{name}", question(function), methods=["POST"])
            for name, function in questions.items()
        ),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def browse(explorer: Explorer, body: Any) -> dict[str, Any]:
    kinds = {"class": asking.optional_integer}
    read = asking.fields(
        body, "the question", split=asking.word, start=asking.integer, count=asking.integer, **kinds
    )
    found = explorer.browse(
        read["split"], start=read["start"], count=read["count"], label=read["class"]
    )
    records = found.page.records
    items = [
        {
            "row": int(row),
            "id": int(records["id"][k]),
            "copy": int(records["copy"][k]),
            "class": int(records["label"][k]),
            "psnr": float(records["psnr"][k]),
            "image": image_io.data_uri(found.images[k]),
            "original": None if found.originals is None else image_io.data_uri(found.originals[k]),
        }
        for k, row in enumerate(found.page.rows)
    ]
    return {"items": items, "following": found.page.following, "note": found.note}


def decode(explorer: Explorer, body: Any) -> dict[str, Any]:
    read = asking.fields(body, "the question", of=_image(explorer), scale=asking.integer)
    made = explorer.decode(read["of"], scale=read["scale"])
    original = None if made.original is None else image_io.data_uri(made.original)
    return {
        "image": image_io.data_uri(made.image),
        "bicubic": image_io.data_uri(made.bicubic),
        "shape": list(made.image.shape[:2]),
        "original": original,
        "note": made.note,
        "class": made.label,
        "psnr": made.psnr,
    }


def sample(explorer: Explorer, body: Any) -> dict[str, Any]:
    """class: a number, "all" in turn or "any"."""
    kinds = {"class": lambda value, name: value}
    read = asking.fields(
        body,
        "the question",
        settings=asking.settings,
        seed=asking.integer,
        count=asking.integer,
        scale=asking.integer,
        **kinds,
    )
    count, num_classes = read["count"], int(explorer.opened.config.data.num_classes)
    if not 1 <= count <= MOST_SAMPLES:  # before that many are listed
        raise ValueError(f"count={count} must be from 1 to {MOST_SAMPLES}")
    if read["class"] == "all":
        labels = [number % num_classes for number in range(count)]
    elif read["class"] == "any":
        labels = [num_classes] * count
    else:
        label = asking.integer(read["class"], "class")
        if not 0 <= label < num_classes:
            raise ValueError(f"class={label} must be from 0 to {num_classes - 1}")
        labels = [label] * count
    asked = [Sample(read["seed"], k, label, read["settings"]) for k, label in enumerate(labels)]
    images = explorer.sample(asked, scale=read["scale"])
    items = [
        {
            "seed": one.seed,
            "number": one.number,
            "class": None if one.label == num_classes else one.label,
            "settings": one.settings._asdict(),
            "image": image_io.data_uri(image),
        }
        for one, image in zip(asked, images, strict=True)
    ]
    return {"items": items}


def strip(explorer: Explorer, body: Any) -> dict[str, Any]:
    read = asking.fields(
        body,
        "the question",
        first=_image(explorer),
        last=_image(explorer),
        count=asking.integer,
        settings=asking.settings,
        scale=asking.integer,
    )
    images, ends = explorer.strip(
        (read["first"], read["last"]),
        count=read["count"],
        settings=read["settings"],
        scale=read["scale"],
    )
    return {
        "images": list(map(image_io.data_uri, images)),
        "ends": list(map(image_io.data_uri, ends)),
    }


def test_image(explorer: Explorer, body: Any) -> dict[str, Any]:
    read = asking.fields(body, "the question", row=asking.integer)
    image, label = explorer.test_image(read["row"])
    return {"image": image_io.data_uri(image), "class": label}


def impute(explorer: Explorer, body: Any) -> dict[str, Any]:
    read = asking.fields(
        body,
        "the question",
        row=asking.integer,
        hidden=asking.mask,
        draws=asking.integer,
        steps=asking.integer,
        seed=asking.integer,
    )
    made = explorer.impute(
        read["row"], read["hidden"], draws=read["draws"], steps=read["steps"], seed=read["seed"]
    )
    return {
        "seen": image_io.data_uri(made.seen),
        "without": image_io.data_uri(made.without),
        "mean": image_io.data_uri(made.mean),
        "draws": list(map(image_io.data_uri, made.draws)),
        "psnr": made.psnr,
    }


def _image(explorer: Explorer) -> Callable[[Any, str], Any]:
    num_classes = int(explorer.opened.config.data.num_classes)
    return lambda value, name: asking.image(value, name, num_classes=num_classes)


async def _read(request: Request) -> Any:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise ValueError("a question must be application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BYTES:
            raise ValueError(f"a question has at most {_MOST_BYTES:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a question must be JSON: {error}") from error


def _error(sentence: str, status: int) -> Response:
    return JSONResponse({"error": sentence}, status_code=status, headers=_HEADERS)


def _file(name: str, media_type: str) -> Callable[[Request], Response]:
    text = importlib.resources.files("functa.explore").joinpath(name).read_text()
    return _text(text, media_type)


def _text(text: str, media_type: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        return Response(text, media_type=media_type, headers=_HEADERS)

    return answer
