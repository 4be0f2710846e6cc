"""Photographs in files or inside tars: looked at one by one, their bytes kept as they are.

folders.py and tars.py list them; here a listing becomes the splits of a data set.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from functa.data import image_records, images
from functa.data.prepare import sources

SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
# Files that begin with a dot are an operating system's notes, whatever their ending.
NAME = re.compile(r"[^.].*\.(png|jpe?g)", re.IGNORECASE)
_NAMED = 10  # files that are not read, in a line


class Photo(NamedTuple):
    """Where a photograph lies; nothing of it has been read.

    Attributes:
      split: by TFDS name; "" where the source has none.
      class_name: the folder it lies in, or the tar, or what a list of labels says.
      name: inside its source, for people.
      file: the file itself or the tar that holds it.
      offset: of its first byte in a tar; None: the file is the photograph.
      num_bytes: as listed; 0 for a link to nowhere.
    """

    split: str
    class_name: str
    name: str
    file: str
    offset: int | None
    num_bytes: int


def archive(
    photos: Iterable[Photo],
    report: sources.Report,
    *,
    test_fraction: float | None,
    min_side: int,
    jobs: int,
) -> sources.Archive:
    """The splits of a listing. Labels follow the order of the names of train's classes.

    A listing has no order of its own and would come class by class, so examples follow
    `images.stratified_order` of the listing sorted by name. Damaged photographs are in it too:
    they are found when they are read to be written. Only that every class of a split has one that
    is whole is looked up here, and of what test_fraction divides, in both parts together.

    Args:
      test_fraction: the part of a listing without splits that becomes the test split, of every
        class.
      min_side: pixels; a photograph with a shorter side counts as damaged.
      jobs: threads.
    Raises:
      ValueError: splits and test_fraction, or neither.
      sources.UnusableSourceError: a class without a whole photograph, or one that train does not have.
    """
    listed = sorted(photos, key=lambda photo: (photo.split, photo.class_name, photo.name))
    names = {split: [p for p in listed if p.split == split] for split in ("", *SPLITS.values())}
    parts = {split: part for split, part in names.items() if part}
    divided = "train" in parts and len(parts) > 1 and "" not in parts
    if divided == (test_fraction is not None) or not (divided or list(parts) == [""]):
        held = ", ".join(split or "images of no split" for split in parts) or "no PNG or JPEG"
        raise ValueError(
            f"the source holds {held}. With train and test (or val) in it leave --test_fraction "
            "out; with class folders alone in it, set --test_fraction to the part to test on"
        )
    parts = parts if divided else {"train": parts[""]}
    class_names = tuple(sorted({photo.class_name for photo in parts["train"]}))
    for name in class_names:
        if os.fsencode(name).decode(errors="ignore") != name:
            report.damaged(
                f"class {name}", "its name is not UTF-8, and the data set keeps it; rename it"
            )
    numbers = {name: label for label, name in enumerate(class_names)}
    with futures.ThreadPoolExecutor(jobs) as pool:
        for split, part in parts.items():
            _require_classes(split, part, numbers, report, min_side=min_side, run=pool.map)
    report.refuse_damage()
    for split, part in parts.items():
        order = images.stratified_order(np.array([numbers[photo.class_name] for photo in part]))
        parts[split] = [part[k] for k in order]
    if test_fraction is not None:
        kept = len(listed) - round(len(listed) * test_fraction)
        parts = {"train": parts["train"][:kept], "test": parts["train"][kept:]}
        if not all(parts.values()):
            raise ValueError(
                f"--test_fraction={test_fraction} of {len(listed)} images leaves a split without any"
            )
    return sources.Archive(
        splits={split: _split(part, numbers, min_side) for split, part in parts.items()},
        class_names=class_names,
        num_classes=len(class_names),
        digest=_digest(parts, class_names, min_side),
    )


def tell(directory: str, count: int, others: Sequence[str], report: sources.Report) -> None:
    """Reports what a class folder, or the tar of a class, holds."""
    ignored = f"; {not_read(others)}" if others else ""
    if count:
        report.found(directory, f"{count:,} images{ignored}")
    else:
        report.damaged(directory, f"no PNG or JPEG in it{ignored}")


def not_read(others: Sequence[str]) -> str:
    """Names files that are no photographs."""
    more = f", ... ({len(others):,} in all)" * (len(others) > _NAMED)
    return f"not read: {', '.join(sorted(others)[:_NAMED])}{more}"


def look(photo: Photo, *, min_side: int) -> sources.Sample:
    """Reads and decodes a photograph, whatever its name says it is.

    Raises:
      OSError: it cannot be read, which says nothing of it, such as when a disk is away.
    """
    try:
        encoded = _read(photo)
    except FileNotFoundError:
        if photo.num_bytes:  # it was there when it was listed
            raise
        return _damaged(photo, "a link to nowhere")
    if len(encoded) != photo.num_bytes:
        return _damaged(photo, f"{len(encoded):,} of {photo.num_bytes:,} bytes are there")
    if not encoded:
        return _damaged(photo, "the file is empty")
    try:
        with image_records.open_image(encoded) as image:
            # Pillow calls a JPEG with a second picture behind it, as telephones make them, MPO.
            kind = f"{'PNG' if image.format == 'PNG' else 'JPEG'} {image.mode}"
            size = image.height, image.width
            # All of the file is read, as for the whole image, but of a JPEG an eighth as large.
            image.draft(None, (1, 1))
            image.load()
    except MemoryError:  # says nothing of the image
        raise
    except Exception as error:  # what a damaged image makes Pillow raise has no common class
        return _damaged(photo, _reason(error, encoded))
    if min(size) < min_side:
        return _damaged(photo, f"{size[0]}x{size[1]} pixels, --min_side is {min_side}")
    return sources.Sample(photo.name, encoded, kind, size, damage="")


def _damaged(photo: Photo, reason: str) -> sources.Sample:
    return sources.Sample(photo.name, b"", "", (0, 0), damage=reason)


def _read(photo: Photo) -> bytes:
    if photo.offset is None:
        return epath.Path(photo.file).read_bytes()
    with open(photo.file, "rb", buffering=0) as file:
        return os.pread(file.fileno(), photo.num_bytes, photo.offset)


def _reason(error: Exception, encoded: bytes) -> str:
    """One line that is the same in every run: Pillow's own can hold an address in memory."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a PNG or JPEG that can be read; it begins with {encoded[:8]!r}"
    what = " ".join(str(error).split())
    return what if type(error) is ValueError else f"{type(error).__name__}: {what}"


def _require_classes(
    split: str,
    part: Sequence[Photo],
    numbers: dict[str, int],
    report: sources.Report,
    *,
    min_side: int,
    run: Callable,
) -> None:
    """Reports the classes of a split that are not in train, and those without a whole photograph."""
    classes: dict[str, list[Photo]] = {}
    for photo in part:
        classes.setdefault(photo.class_name, []).append(photo)

    def fault(name: str) -> str:
        if name not in numbers:
            return "a class that train does not have"
        looked = (look(photo, min_side=min_side) for photo in classes[name])
        first = next(looked)
        if not first.damage or not all(sample.damage for sample in looked):
            return ""
        return f"none of its {len(classes[name])} images is whole; {first.name}: {first.damage}"

    for name, what in zip(classes, run(fault, classes), strict=True):
        if what:
            report.damaged(f"{split}: class {name}", what)


def _split(photos: Sequence[Photo], numbers: dict[str, int], min_side: int) -> sources.Split:
    return sources.Split(
        labels=np.array([numbers[photo.class_name] for photo in photos], np.int64),
        read=lambda k: look(photos[k], min_side=min_side),
        num_bytes=sum(photo.num_bytes for photo in photos),
    )


def _digest(parts: dict[str, list[Photo]], class_names: Sequence[str], min_side: int) -> str:
    """Of names, sizes and order: reading every byte would take as long as preparing the set."""
    lines = (
        os.fsencode(f"{split} {photo.class_name} {photo.name} {photo.num_bytes}")
        for split, part in parts.items()
        for photo in part
    )
    head = (str(min_side).encode(), *map(os.fsencode, class_names))
    return sources.digest(itertools.chain(head, lines))
