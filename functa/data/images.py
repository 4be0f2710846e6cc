"""Images with random access: scikit-learn's embedded digits, and TFDS data sets in ArrayRecord."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from etils import epath

from functa.data import image_records
from functa.data.image_records import DataError
from functa.runtime import storage

Batch = dict[str, np.ndarray]
_DIGITS_TEST = 360
_CHUNK = 1024  # images that a thread decodes before it asks for more
# Smaller images are decoded by one thread: with several, each waits for the interpreter longer than it decodes.
_WORTH_THREADS = 64 * 64  # pixels; where two threads began to win (docs/PERFORMANCE.md, "Start")


class ImageSource(Protocol):
    """Random access to one split of an image data set."""

    @property
    def num_examples(self) -> int: ...

    def read(self, indices: np.ndarray) -> Batch:
        """Reads the examples at positions `indices` [k] of this split; several threads may.

        Returns:
          "image" uint8 [k, h, w, c]; "label" int32 [k]; "id" int64 [k], the index in the data
          set's own split: a validation example keeps its index in the train split, so that the two
          share no id.
        Raises:
          IndexError: an index outside [0, num_examples).
          ValueError: a record that cannot be read or is not what the config says, by file and
            number.
        """

    def read_whole(self, indices: np.ndarray) -> tuple[Batch, list[np.ndarray]]:
        """What `read` gives, and the images [H, W, c] uint8 as they are kept, before they are cropped and resized to
        one shape.

        Raises: as `read`.
        """


def open_splits(
    *,
    source: str,
    name: str,
    data_dir: epath.PathLike,
    image_shape: Sequence[int],
    num_classes: int,
    train_split: str,
    test_split: str,
    validation_examples: int,
    max_examples: int,
    cache: str,
) -> dict[str, ImageSource]:
    """Opens the splits "train", "validation" and "test" as config.data describes them.

    Args:
      source: "digits" (1,437 images to train and 360 to test, 8x8x1, always in memory; it needs no
        name, data_dir or cache) or "tfds".
      name: of the TFDS data set, with /CONFIG and :VERSION where it has several.
      image_shape: h, w, c of what is read. A data set whose images vary in size is cropped and
        resized to it (see records.decode_image); for all others it must be the very shape.
      num_classes: labels lie in [0, num_classes).
      train_split, test_split: TFDS splits; slices such as "train[:80%]" work.
      validation_examples: this many of the train split, taken from its end.
      max_examples: only the first so many of each of the three splits; 0: all.
      cache: "host" decodes a split once, at its first read, and then gathers from memory; "none"
        always decodes.
    Raises:
      DataError: everything found wrong without reading an example.
    """
    problems = _check_words(source, image_shape, num_classes, max_examples, cache)
    names = {"train": train_split, "validation": train_split, "test": test_split}
    if source == "digits":
        problems += _check_digits(image_shape, num_classes, train_split, test_split)
        part, train, test = _digits_parts()
    elif source == "tfds":
        try:
            part, train, test = _tfds_parts(name, data_dir, names, image_shape, num_classes, cache)
        except DataError as error:
            raise DataError(problems + error.problems) from error
    else:
        raise DataError(problems)
    if not 0 < validation_examples < train:
        problems.append(
            f"data.validation_examples is {validation_examples}, but must lie between 1 and "
            f"{train - 1}: the train split {train_split!r} has {train} examples and keeps the rest"
        )
    if problems:
        raise DataError(problems)
    kept = train - validation_examples
    ranges = {"train": range(kept), "validation": range(kept, train), "test": range(test)}
    return {split: part(split, ids[: max_examples or None]) for split, ids in ranges.items()}


def check(**data: Any) -> list[str]:
    """Every problem of config.data; takes what `open_splits` takes. [] if there is none."""
    try:
        return check_splits(open_splits(**data))
    except DataError as error:
        return error.problems


def check_splits(splits: dict[str, ImageSource]) -> list[str]:
    """What is wrong with opened splits, one line each; [] if nothing is.

    Splits that are kept in memory are decoded here and now, every image and label. Of others the
    first, middle and last example are read; damage elsewhere is found by checksum, and a label out
    of range by its number, when it is read.
    """
    problems = []
    for split in splits.values():
        indices = sorted({0, split.num_examples // 2, split.num_examples - 1})
        for index in indices[:1] if isinstance(split, _Cached) else indices:
            try:
                split.read(np.array([index]))
            except ValueError as error:
                problems.append(str(error))
    return problems


def class_names(*, source: str, name: str, data_dir: epath.PathLike, num_classes: int) -> list[str]:
    """Names of the classes in the order of their labels; their numbers where none are recorded."""
    label = (
        image_records.open_builder(name, data_dir).info.features["label"]
        if source == "tfds"
        else None
    )
    return list(getattr(label, "names", None) or map(str, range(num_classes)))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed shuffled order in which every stretch holds the classes in their overall proportions.

    Args:
      labels: [n] integers.
    Returns:
      [n] int64, a permutation; it depends on `labels` alone, on no seed and on no library's
      version.
    """
    digests = [hashlib.sha256(str(index).encode()).digest() for index in range(len(labels))]
    # The r-th of a class's n examples, in the order of the digests, goes (r + 1/2) / n of the way.
    fractions = np.empty(len(labels), np.float64)
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=digests.__getitem__):
        by_class.setdefault(int(labels[index]), []).append(index)
    for members in by_class.values():
        fractions[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((labels, fractions)).astype(np.int64)


def _check_words(
    source: str, image_shape: Sequence[int], num_classes: int, max_examples: int, cache: str
) -> list[str]:
    problems = []
    if source not in ("digits", "tfds"):
        problems.append(f"data.source is {source!r}; known are digits and tfds")
    if cache not in ("host", "none"):
        problems.append(f"data.cache is {cache!r}; known are host and none")
    if (
        len(image_shape) != 3
        or not all(isinstance(size, int) and size > 0 for size in image_shape)
        or image_shape[2] not in (1, 3)
    ):
        problems.append(
            f"data.image_shape is {tuple(image_shape)}, but must be (h, w, c) with c 1 or 3"
        )
    if num_classes < 1:
        problems.append(f"data.num_classes is {num_classes}, but must be at least 1")
    if max_examples < 0:
        problems.append(f"data.max_examples is {max_examples}, but must be 0 (all) or more")
    return problems


def _check_digits(
    image_shape: Sequence[int], num_classes: int, train_split: str, test_split: str
) -> list[str]:
    given = (tuple(image_shape), num_classes, train_split, test_split)
    wanted = ((8, 8, 1), 10, "train", "test")
    keys = ("image_shape", "num_classes", "train_split", "test_split")
    return [
        f"data.{key} is {mine!r}, but the embedded digits have {theirs!r}"
        for key, mine, theirs in zip(keys, given, wanted, strict=True)
        if mine != theirs
    ]


Part = Callable[[str, range], ImageSource]  # (split, its range of ids) -> source


def _digits_parts() -> tuple[Part, int, int]:
    """How to open a part of a split, and the sizes of the train and test splits."""
    from sklearn import datasets  # a second of import that no other source needs

    digits = datasets.load_digits()
    order = stratified_order(digits.target)
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target[order].astype(np.int32)
    train = len(images) - _DIGITS_TEST

    def part(split: str, ids: range) -> ImageSource:
        first = train if split == "test" else 0
        rows = slice(first + ids.start, first + ids.stop)
        return _InMemory(images[rows], labels[rows], np.arange(ids.start, ids.stop))

    return part, train, _DIGITS_TEST


def _tfds_parts(
    name: str,
    data_dir: epath.PathLike,
    names: dict[str, str],
    image_shape: Sequence[int],
    num_classes: int,
    cache: str,
) -> tuple[Part, int, int]:
    """As `_digits_parts`; names[split] is the TFDS split that `split` is a part of."""
    try:
        builder = image_records.open_builder(name, data_dir)
    except ValueError as error:
        raise DataError([str(error)]) from error
    problems = image_records.check_features(
        builder, image_shape=image_shape, num_classes=num_classes
    )
    if builder.info.file_format == image_records.FORMAT:
        for split in dict.fromkeys(names.values()):
            problems += image_records.check_files(builder, split)
    if problems:
        raise DataError(problems)

    def part(split: str, ids: range) -> ImageSource:
        source = image_records.Records(
            builder, names[split], ids, image_shape=image_shape, num_classes=num_classes
        )
        return _Cached(source) if cache == "host" else source

    splits = builder.info.splits
    if not storage.is_remote(builder.data_path):
        # Each part opens those of its split, validation those of train.
        files = sum(len(splits[split].file_instructions) for split in names.values())
        try:
            storage.allow_open_files(files)
        except ValueError as error:
            raise DataError([f"{builder.data_path}: {error}"]) from error
    return part, splits[names["train"]].num_examples, splits[names["test"]].num_examples


class _InMemory:
    """Decoded examples: images uint8 [n, h, w, c], labels int32 [n], ids int64 [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, ids: np.ndarray):
        self.num_examples = len(ids)
        self._arrays = {"image": images, "label": labels, "id": ids}

    def read(self, indices: np.ndarray) -> Batch:
        rows = image_records.within(indices, self.num_examples)
        return {key: np.take(array, rows, axis=0) for key, array in self._arrays.items()}

    def read_whole(self, indices: np.ndarray) -> tuple[Batch, list[np.ndarray]]:
        batch = self.read(indices)
        return batch, list(batch["image"])


class _Cached:
    """Records decoded at the first read, large images by all cores; the threads that come meanwhile wait."""

    def __init__(self, source: image_records.Records):
        self.records = source
        self.num_examples = source.num_examples
        self._lock = threading.Lock()
        self._decoded: _InMemory | None = None

    def read(self, indices: np.ndarray) -> Batch:
        with self._lock:
            if self._decoded is None:
                self._decoded = self._decode()
        return self._decoded.read(indices)

    def read_whole(self, indices: np.ndarray) -> tuple[Batch, list[np.ndarray]]:
        if self.records.resizes:
            return self.records.read_whole(indices)  # what is kept in memory has been resized
        batch = self.read(indices)
        return batch, list(batch["image"])

    def _decode(self) -> _InMemory:
        n = self.num_examples
        images = np.empty((n, *self.records.image_shape), np.uint8)
        labels, ids = np.empty(n, np.int32), np.empty(n, np.int64)

        def fill(start: int) -> None:
            rows = np.arange(start, min(start + _CHUNK, n))
            chunk = self.records.read(rows)
            images[rows], labels[rows], ids[rows] = chunk["image"], chunk["label"], chunk["id"]

        h, w, _ = self.records.image_shape
        with futures.ThreadPoolExecutor(os.cpu_count() if h * w >= _WORTH_THREADS else 1) as pool:
            list(pool.map(fill, range(0, n, _CHUNK)))  # list: re-raises what a thread raised
        return _InMemory(images, labels, ids)
