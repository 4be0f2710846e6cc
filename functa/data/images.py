"""Image sources: the digits of scikit-learn, and TFDS data sets in ArrayRecord files."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from functa.data import image_records
from functa.data.sources import Batch, InMemorySource, Source, load_into_memory
from functa.runtime import storage
from functa.runtime.config import range_errors
from functa.runtime.errors import DataError

_DIGITS_TEST_EXAMPLES = 360
_BLOCK_SIZE = 1024  # images that a thread decodes per call
# Several threads decode smaller images more slowly than one: they wait for the interpreter lock.
_MIN_PIXELS_FOR_THREADS = 64 * 64  # measured: docs/PERFORMANCE.md, "Start"


class ImageSource(Source, Protocol):
    """Random access to one split of an image data set.

    `read` returns "image" uint8 [k, h, w, c], "label" int32 [k] and "id" int64 [k]. An id is the index
    in the split of the data set: validation examples keep their index in the train split. `read`
    raises DataError if a record is damaged or does not suit the config.
    """

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c) of the images that `read` returns."""

    def read_originals(self, indices: np.ndarray) -> dict[str, Any]:
        """`read` without cropping and resizing: "image" is a sequence of arrays [H, W, c] uint8."""


OpenRange = Callable[[str, range], ImageSource]


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
    """Opens the splits "train", "validation" and "test". The arguments are the keys of config.data.

    Args:
      source: "digits" (1,437 train and 360 test images, 8x8x1, always in memory; name, data_dir and
        cache are not used) or "tfds".
      name: TFDS name; NAME/CONFIG:VERSION selects one of several configs or versions.
      image_shape: (h, w, c). A data set whose images vary in size is cropped and resized to it, see
        image_arrays.crop_and_resize; other data sets must have this shape.
      num_classes: labels must lie in [0, num_classes).
      train_split, test_split: TFDS splits; slices such as "train[:80%]" work.
      validation_examples: examples at the end of the train split that form the validation split.
      max_examples: uses only the first examples of each split; 0: all.
      cache: "host" decodes a split at its first read and keeps it in memory; "none" decodes at every
        read.
    Raises:
      DataError: lists all problems that can be found without reading an example.
    """
    problems = _value_problems(source, image_shape, num_classes, max_examples, cache)
    tfds_splits = {"train": train_split, "validation": train_split, "test": test_split}
    if source == "digits":
        problems += _digits_problems(image_shape, num_classes, train_split, test_split)
        train, test, open_range = _open_digits()
    elif source == "tfds":
        try:
            train, test, open_range = _open_tfds(
                name, data_dir, tfds_splits, image_shape, num_classes, cache
            )
        except DataError as error:
            raise DataError(problems + error.problems) from error
    else:
        raise DataError(problems)
    if not 0 < validation_examples < train:
        problems.append(
            f"data.validation_examples={validation_examples} must lie between 1 and {train - 1}: the "
            f"split {train_split!r} has {train} examples for training and validation"
        )
    if problems:
        raise DataError(problems)
    end = train - validation_examples
    ranges = {"train": range(end), "validation": range(end, train), "test": range(test)}
    return {split: open_range(split, ids[: max_examples or None]) for split, ids in ranges.items()}


def validate_splits(splits: dict[str, ImageSource]) -> list[str]:
    """Reads examples and returns their problems, one line each.

    Splits with cache="host" are decoded completely. Of other splits the first, middle and last example
    are read; damage elsewhere raises DataError when it is read.
    """
    problems = []
    for split in splits.values():
        indices = sorted({0, split.num_examples // 2, split.num_examples - 1})
        for index in indices[:1] if isinstance(split, _CachedImages) else indices:
            try:
                split.read(np.array([index]))
            except ValueError as error:
                problems.append(str(error))
    return problems


def class_names(*, source: str, name: str, data_dir: epath.PathLike, num_classes: int) -> list[str]:
    """Names of the classes in the order of their labels; "0", "1", ... if the data set has none."""
    names = None
    if source == "tfds":
        label = image_records.open_builder(name, data_dir).info.features["label"]
        names = getattr(label, "names", None)
    return list(names or map(str, range(num_classes)))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """A shuffled order in which every contiguous part has nearly the class proportions of the whole.

    Args:
      labels: [n] integers.
    Returns:
      A permutation [n] int64 that depends on `labels` alone, on no seed and no library version.
    """
    digests = [hashlib.sha256(str(index).encode()).digest() for index in range(len(labels))]
    # Example r of the n examples of a class, in the order of the digests, is at (r + 1/2) / n.
    fractions = np.empty(len(labels), np.float64)
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=digests.__getitem__):
        by_class.setdefault(int(labels[index]), []).append(index)
    for members in by_class.values():
        fractions[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((labels, fractions)).astype(np.int64)


def _value_problems(
    source: str, image_shape: Sequence[int], num_classes: int, max_examples: int, cache: str
) -> list[str]:
    choices = {"source": (source, ("digits", "tfds")), "cache": (cache, ("host", "none"))}
    problems = [
        f"data.{key}={value!r} is unknown; choose from {', '.join(known)}"
        for key, (value, known) in choices.items()
        if value not in known
    ]
    sizes_are_valid = all(isinstance(size, int) and size > 0 for size in image_shape)
    if len(image_shape) != 3 or not sizes_are_valid or image_shape[2] not in (1, 3):
        problems.append(f"data.image_shape={tuple(image_shape)} must be (h, w, c) with c 1 or 3")
    problems += range_errors({"data.num_classes": (num_classes, 1, 10**9)})
    return problems + range_errors({"data.max_examples": (max_examples, 0, 10**12)})


def _digits_problems(
    image_shape: Sequence[int], num_classes: int, train_split: str, test_split: str
) -> list[str]:
    values = {
        "image_shape": (tuple(image_shape), (8, 8, 1)),
        "num_classes": (num_classes, 10),
        "train_split": (train_split, "train"),
        "test_split": (test_split, "test"),
    }
    return [
        f"data.{key}={value!r} must be {required!r} for data.source=digits"
        for key, (value, required) in values.items()
        if value != required
    ]


def _open_digits() -> tuple[int, int, OpenRange]:
    """Sizes of the train and test splits, and a function that opens a range of a split."""
    from sklearn import datasets  # takes a second to import

    digits = datasets.load_digits()
    order = stratified_order(digits.target)
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target[order].astype(np.int32)
    train = len(images) - _DIGITS_TEST_EXAMPLES

    def open_range(split: str, ids: range) -> ImageSource:
        indices = np.arange(ids.start, ids.stop, dtype=np.int64)
        rows = indices + (train if split == "test" else 0)
        return _InMemoryImages({"image": images[rows], "label": labels[rows], "id": indices})

    return train, _DIGITS_TEST_EXAMPLES, open_range


def _open_tfds(
    name: str,
    data_dir: epath.PathLike,
    tfds_splits: dict[str, str],
    image_shape: Sequence[int],
    num_classes: int,
    cache: str,
) -> tuple[int, int, OpenRange]:
    """Like `_open_digits`; tfds_splits: name of our split -> TFDS split that it is a part of."""
    builder = image_records.open_builder(name, data_dir)
    config: dict[str, Any] = {"image_shape": image_shape, "num_classes": num_classes}
    problems = image_records.validate_features(builder, **config)
    if builder.info.file_format == image_records.FORMAT:
        for split in dict.fromkeys(tfds_splits.values()):
            problems += image_records.validate_files(builder, split)
    if problems:
        raise DataError(problems)

    def open_range(split: str, ids: range) -> ImageSource:
        records = image_records.Records(builder, tfds_splits[split], ids, **config)
        return _CachedImages(records) if cache == "host" else records

    splits = builder.info.splits
    if not storage.is_remote(builder.data_path):
        # Train and validation both open the files of the train split.
        files = sum(len(splits[split].file_instructions) for split in tfds_splits.values())
        try:
            storage.allow_open_files(files)
        except ValueError as error:
            raise DataError([f"{builder.data_path}: {error}"]) from error
    train, test = (splits[tfds_splits[split]].num_examples for split in ("train", "test"))
    return train, test, open_range


class _InMemoryImages(InMemorySource):
    """Images in memory in their stored shape."""

    read_originals = InMemorySource.read

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.arrays["image"].shape[1:]


class _CachedImages:
    """Images that the first read decodes and keeps in memory; other threads wait for it."""

    def __init__(self, records: image_records.Records):
        self.num_examples, self.image_shape = records.num_examples, records.image_shape
        self._records = records
        self._lock = threading.Lock()
        self._images: InMemorySource | None = None

    def read(self, indices: np.ndarray) -> Batch:
        h, w, _ = self.image_shape
        threads = (os.cpu_count() or 1) if h * w >= _MIN_PIXELS_FOR_THREADS else 1
        with self._lock:
            if self._images is None:
                self._images = load_into_memory(
                    self._records, block_size=_BLOCK_SIZE, threads=threads
                )
        return self._images.read(indices)

    def read_originals(self, indices: np.ndarray) -> dict[str, Any]:
        # The images in memory are resized.
        return (self._records.read_originals if self._records.resizes else self.read)(indices)
