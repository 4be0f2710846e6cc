"""What a source of images is once it has been read: splits whose images are made one by one."""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from functa.runtime.errors import UserError


class UnusableSourceError(UserError):
    """Nothing can be prepared from this source. The report lists the reasons."""


class Report:
    """What was found in a source, file by file.

    Args:
      show: is given each line as soon as it is known; reading all of ImageNet takes long.
    """

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._damaged: list[str] = []

    def found(self, path: str, what: str) -> None:
        self._show(printable(f"{path}: {what}"))

    def damaged(self, path: str, reason: str) -> None:
        self._damaged.append(path)
        self._show(printable(f"{path}: DAMAGED: {reason}"))

    def refuse_damage(self) -> None:
        """Raises UnusableSourceError if anything is damaged."""
        if self._damaged:
            told = printable(", ".join(self._damaged))
            raise UnusableSourceError(f"{len(self._damaged)} damaged: {told}")


def printable(text: str) -> str:
    """Bytes of file names that are not UTF-8, as escapes."""
    return text.encode(errors="backslashreplace").decode()


class Sample(NamedTuple):
    """An image as it will be stored, or why it cannot be.

    Attributes:
      name: inside its source, for people.
      encoded: the bytes of a PNG or JPEG file.
      kind: its format and Pillow's mode, such as "JPEG RGB".
      size: height and width.
      damage: why it is left out; "" if it is whole. The others but the name then mean nothing.
    """

    name: str
    encoded: bytes
    kind: str
    size: tuple[int, int]
    damage: str


class Split(NamedTuple):
    """Labels [n] int64; read: k -> image k, called by several threads; num_bytes: about, of them
    all."""

    labels: np.ndarray
    read: Callable[[int], Sample]
    num_bytes: int


class Archive(NamedTuple):
    """A data set ready to be written.

    Attributes:
      splits: by TFDS name.
      class_names: in the order of the labels; empty where the source does not tell.
      num_classes: labels lie in [0, num_classes).
      digest: of what it was made from and in which order; two archives of one digest have the same
        samples.
    """

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    num_classes: int
    digest: str


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """`sha256:...` of parts, contiguous ones; where one ends and the next begins counts."""
    found = hashlib.sha256()
    for part in parts:
        view = memoryview(part).cast("B")
        found.update(len(view).to_bytes(8, "little"))
        found.update(view)
    return f"sha256:{found.hexdigest()}"
