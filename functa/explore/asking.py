"""From the JSON of a request to what an Explorer takes. What is not as it should be is told in a sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np

from functa.explore.drawing import Sample, Settings
from functa.explore.explorer import Record

_LARGEST_INTEGER = 2**53  # that JSON's numbers hold

Body = dict[str, Any]


def integer(value: Any, name: str) -> int:
    if type(value) is not int or abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{name} must be a whole number, not {shown(value)}")
    return value


def number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{name} must be a number, not {shown(value)}")
    return float(value)


def word(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a word, not {shown(value)}")
    return value


def optional_integer(value: Any, name: str) -> int | None:
    return None if value is None else integer(value, name)


def settings(body: Body, name: str) -> Settings:
    read = fields(body, name, guidance=number, steps=integer, solver=word)
    return Settings(**read)


def image(body: Any, name: str, *, num_classes: int) -> Record | Sample:
    """{"split", "row"}, or {"seed", "number", "class": null for any, "settings"}."""
    if isinstance(body, dict) and "split" in body:
        return Record(**fields(body, name, split=word, row=integer))
    kinds = {"class": optional_integer, "settings": settings}
    read = fields(body, name, seed=integer, number=integer, **kinds)
    label = num_classes if read["class"] is None else read["class"]
    return Sample(read["seed"], read["number"], label, read["settings"])


def mask(value: Any, name: str) -> np.ndarray:
    """Strings of 0 and 1, a row of pixels each, all of one length -> [h, w] bool."""
    rows = value if isinstance(value, list) else []
    if (
        not rows
        or not all(isinstance(row, str) and set(row) <= {"0", "1"} for row in rows)
        or len({len(row) for row in rows}) > 1
        or not rows[0]
    ):
        raise ValueError(f"{name} must be rows of 0 and 1, all of one length, such as 0011")
    return np.asarray([[pixel == "1" for pixel in row] for row in rows])


def fields(body: Any, what: str, **readers: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Reads every field by its reader.

    Raises:
      ValueError: not an object with exactly these fields, or a value that a reader refuses.
    """
    if not isinstance(body, dict):
        raise ValueError(f"{what} must be a JSON object, not {shown(body)}")
    problems = [f"{what} has no {name}" for name in readers if name not in body]
    problems += [f"{what} has an unknown {shown(name)}" for name in body if name not in readers]
    if problems:
        raise ValueError("; ".join(problems))
    return {name: reader(body[name], name) for name, reader in readers.items()}


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
