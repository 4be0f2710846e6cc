"""Photographs in files or tars. They are read and checked one by one; their bytes stay unchanged.

folders.py and tars.py list photographs; this module turns a list into the splits of a data set.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from functa.data import image_records, images
from functa.data.prepare.sources import EncodedImage, Report, SourceDataset, SourceSplit
from functa.runtime import storage
from functa.runtime.digests import json_digest
from functa.runtime.errors import UserError

SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}


class Photo(NamedTuple):
    """Location of a photograph that has not been read.

    Attributes:
      split: TFDS name of the split, "" if the source has none.
      class_name: name of the class.
      name: path inside the source.
      file: path of the photograph, or of the tar that holds it.
      offset: of its first byte in the tar; None: the file is the photograph.
      num_bytes: size as listed; 0 for a broken link.
    """

    split: str
    class_name: str
    name: str
    file: str
    offset: int | None
    num_bytes: int


def make_dataset(
    photos: Sequence[Photo], report: Report, *, test_fraction: float | None, min_side: int
) -> SourceDataset:
    """The splits of a list of photographs. Labels follow the sorted class names of train.

    Examples follow `images.stratified_order` of the sorted list, so that classes are mixed. Damaged
    photographs are part of the splits and are detected when they are read. Here every class is only
    checked to have one intact photograph.

    Args:
      test_fraction: part of every class that becomes the test split, for a source without splits.
      min_side: photographs with a shorter side, in pixels, count as damaged.
    Raises:
      UserError: the source has splits and test_fraction is set, or neither.
      DataError: a class has no intact photograph, or train does not have it.
    """
    photos = sorted(photos, key=lambda photo: (photo.split, photo.class_name, photo.name))
    parts = _split_photos(photos, divided=test_fraction is not None)
    class_names = tuple(sorted({photo.class_name for photo in parts["train"]}))
    labels = {name: label for label, name in enumerate(class_names)}
    for name in class_names:
        if os.fsencode(name).decode(errors="ignore") != name:
            report.add_problem(f"class {name}", "its name is not UTF-8; rename the folder")
    classes = [
        list(group)
        for part in parts.values()
        for _, group in itertools.groupby(part, key=lambda photo: photo.class_name)
    ]
    check = functools.partial(_class_problem, labels=labels, min_side=min_side)
    for (photo, *_), problem in zip(classes, storage.thread_map(check, classes), strict=True):
        if problem:
            report.add_problem(f"{photo.split or 'train'}: class {photo.class_name}", problem)
    report.raise_problems()
    for split, part in parts.items():
        order = images.stratified_order(np.array([labels[photo.class_name] for photo in part]))
        parts[split] = [part[k] for k in order]
    if test_fraction is not None:
        num_train = len(photos) - round(len(photos) * test_fraction)
        parts = {"train": parts["train"][:num_train], "test": parts["train"][num_train:]}
        if not all(parts.values()):
            raise UserError(
                f"--test-fraction={test_fraction} of {len(photos)} images leaves an empty split"
            )
    # Hashing every byte would take as long as writing the set.
    listing = {
        split: [(photo.class_name, photo.name, photo.num_bytes) for photo in part]
        for split, part in parts.items()
    }
    return SourceDataset(
        splits={split: _source_split(part, labels, min_side) for split, part in parts.items()},
        class_names=class_names,
        num_classes=len(class_names),
        digest=json_digest([listing, class_names, min_side]),
    )


def _split_photos(photos: Sequence[Photo], *, divided: bool) -> dict[str, list[Photo]]:
    """Photographs by split; all in train if they will be `divided`."""
    names = dict.fromkeys(("", *SPLITS.values()))
    parts = {name: [photo for photo in photos if photo.split == name] for name in names}
    parts = {name: part for name, part in parts.items() if part}
    if divided and list(parts) == [""]:
        return {"train": parts[""]}
    if not divided and "train" in parts and len(parts) > 1 and "" not in parts:
        return parts
    content = ", ".join(split or "images of no split" for split in parts) or "no PNG or JPEG"
    raise UserError(
        f"the source holds {content}. With train and test (or val) folders leave out"
        " --test-fraction; with class folders only, set --test-fraction to the part for testing"
    )


def report_class(place: str, count: int, num_ignored: int, report: Report) -> None:
    """Reports how many images a class folder, or the tar of a class, holds."""
    ignored = f"; {num_ignored:,} other files are ignored" if num_ignored else ""
    if count:
        report.info(place, f"{count:,} images{ignored}")
    else:
        report.add_problem(place, f"no PNG or JPEG{ignored}")


def read_photo(photo: Photo, *, min_side: int) -> EncodedImage:
    """Reads and decodes a photograph; its bytes, not its name, decide which format it has.

    Raises:
      OSError: it cannot be read, for example because a disk is away. Damage raises nothing.
    """
    damaged = functools.partial(EncodedImage, photo.name)
    if not photo.num_bytes:
        return damaged(damage="an empty file or a broken link")
    data = _read(photo)
    if len(data) != photo.num_bytes:
        return damaged(damage=f"only {len(data):,} of {photo.num_bytes:,} bytes are there")
    try:
        with image_records.open_image(data) as image:
            # Pillow names a JPEG with a second picture behind it, as phones write them, MPO.
            image_format = f"{'PNG' if image.format == 'PNG' else 'JPEG'} {image.mode}"
            size = image.height, image.width
            # Decodes every byte, but a JPEG to an eighth of its size, which is faster.
            image.draft(None, (1, 1))
            image.load()
    except MemoryError:  # no fault of the image
        raise
    except Exception as error:  # a damaged image can make Pillow raise anything
        return damaged(damage=_reason(error, data))
    if min(size) < min_side:
        return damaged(damage=f"{size[0]}x{size[1]} pixels, --min-side is {min_side}")
    return EncodedImage(photo.name, data, image_format, size)


def _read(photo: Photo) -> bytes:
    if photo.offset is None:
        return epath.Path(photo.file).read_bytes()
    with open(photo.file, "rb", buffering=0) as file:
        return os.pread(file.fileno(), photo.num_bytes, photo.offset)


def _reason(error: Exception, data: bytes) -> str:
    """One line that is the same in every run: messages of Pillow can hold memory addresses."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a readable PNG or JPEG; it begins with {data[:8]!r}"
    text = " ".join(str(error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _class_problem(photos: Sequence[Photo], *, labels: dict[str, int], min_side: int) -> str:
    """Why the photographs of one class of a split cannot be used, "" if they can."""
    if photos[0].class_name not in labels:
        return "train does not have this class"
    read = (read_photo(photo, min_side=min_side) for photo in photos)
    first = next(read)
    if not first.damage or not all(image.damage for image in read):
        return ""
    return f"none of its {len(photos)} images is intact; {first.name}: {first.damage}"


def _source_split(photos: Sequence[Photo], labels: dict[str, int], min_side: int) -> SourceSplit:
    return SourceSplit(
        labels=np.array([labels[photo.class_name] for photo in photos], np.int64),
        read=lambda index: read_photo(photos[index], min_side=min_side),
        num_bytes=sum(photo.num_bytes for photo in photos),
    )
