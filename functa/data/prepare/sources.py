"""Image sources that are ready to be written: labels, images read one by one, and problems."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from functa.runtime.errors import DataError


class Report:
    """Prints lines about the parts of a source and collects its problems."""

    def __init__(self, print_line: Callable[[str], None]):
        self._print_line = print_line
        self._problems: list[str] = []

    def info(self, path: str, text: str) -> None:
        self._print_line(_printable(f"{path}: {text}"))

    def add_problem(self, path: str, reason: str) -> None:
        self._problems.append(_printable(f"{path}: {reason}"))

    def raise_problems(self) -> None:
        """Raises DataError with all problems, if there are any."""
        if self._problems:
            raise DataError(self._problems)


def _printable(text: str) -> str:
    """Escapes the bytes of file names that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class EncodedImage(NamedTuple):
    """An image as it will be stored, or the reason why it cannot be.

    Attributes:
      name: path inside the source.
      data: bytes of a PNG or JPEG file.
      format: file format and Pillow mode, such as "JPEG RGB".
      size: height and width.
      damage: why the image is left out, "" for an intact image. If set, only `name` has a meaning.
    """

    name: str
    data: bytes = b""
    format: str = ""
    size: tuple[int, int] = (0, 0)
    damage: str = ""


class SourceSplit(NamedTuple):
    """One split of a source.

    Attributes:
      labels: [n] int64.
      read: index -> EncodedImage; thread-safe.
      num_bytes: approximate size of all images.
    """

    labels: np.ndarray
    read: Callable[[int], EncodedImage]
    num_bytes: int


class SourceDataset(NamedTuple):
    """A source that is ready to be written.

    Attributes:
      splits: splits by TFDS name.
      class_names: names in the order of the labels; empty if the source does not name them.
      num_classes: labels lie in [0, num_classes).
      digest: equal digests mean equal images in the same order.
    """

    splits: dict[str, SourceSplit]
    class_names: tuple[str, ...]
    num_classes: int
    digest: str
