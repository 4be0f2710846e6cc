"""Reader of photographs in class folders, as ImageNet is unpacked; their bytes stay as they are."""

import collections
import functools
import io
import os
import re
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from functa.data import archives, images

_SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}
_IMAGE_NAME = re.compile(r".+\.(png|jpe?g)", re.IGNORECASE)


class _Photo(NamedTuple):
    """A file that was read and decoded; `damage` says why it cannot be used."""

    path: str
    label: int
    num_bytes: int
    kind: str = ""  # such as "JPEG RGB"
    height: int = 0
    width: int = 0
    damage: str = ""


def read_folder(
    root: epath.Path, report: archives.Report, *, test_fraction: float | None
) -> archives.Archive:
    """ROOT/train/CLASS/IMAGE and ROOT/test/... or val/..., or ROOT/CLASS/IMAGE and a fraction.

    Labels follow the order of the class folders' names. A listing has no order of its own and
    would come class by class, so examples follow `images.stratified_order` of the sorted listing.
    Every image is decoded once; one that cannot be is left out and listed.

    Args:
      test_fraction: the part of ROOT/CLASS/IMAGE that becomes the test split, of every class.
    Raises:
      ValueError: split folders and test_fraction, or neither.
      DamagedError: a class without a usable image, or a class that is not in train.
    """
    inside = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    found = {_SPLITS[name]: path for name, path in inside.items() if name in _SPLITS}
    divided = "train" in found and len(found) > 1
    if divided == (test_fraction is not None):
        raise ValueError(
            f"{root} holds the folders {', '.join(list(inside)[:10]) or 'none'}. With train and "
            "test (or val) below it leave --test_fraction out; with class folders below it, set "
            "--test_fraction to the part to test on"
        )
    parts = found if divided else {"train": root}
    class_names = tuple(path.name for path in sorted(parts["train"].iterdir()) if path.is_dir())
    photos = {split: _read_classes(folder, class_names, report) for split, folder in parts.items()}
    report.refuse_damage()
    usable = {split: [p for p in part if not p.damage] for split, part in photos.items()}
    for split, part in usable.items():
        order = images.stratified_order(np.array([photo.label for photo in part]))
        usable[split] = [part[k] for k in order]
    if test_fraction is not None:
        kept = len(usable["train"]) - round(len(usable["train"]) * test_fraction)
        usable = {"train": usable["train"][:kept], "test": usable["train"][kept:]}
    good = [photo for part in usable.values() for photo in part]
    formats = {photo.kind.split()[0].lower() for photo in good}
    sizes = {(photo.height, photo.width) for photo in good}
    channels = 1 if {photo.kind.split()[1] for photo in good} <= {"1", "L"} else 3
    return archives.Archive(
        splits={split: _split(part) for split, part in usable.items()},
        class_names=class_names,
        num_classes=len(class_names),
        image_shape=(*(sizes.pop() if len(sizes) == 1 else (None, None)), channels),
        encoding=formats.pop() if len(formats) == 1 else None,
        skipped=sum(bool(photo.damage) for part in photos.values() for photo in part),
    )


def _read_classes(
    folder: epath.Path, class_names: Sequence[str], report: archives.Report
) -> list[_Photo]:
    """Looks at all that lies below a folder of class folders; a line for each of them."""
    photos = []
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path in sorted(path for path in folder.iterdir() if path.is_dir()):
            if path.name not in class_names:
                report.damaged(str(path), "a class that train does not have")
                continue
            listed = sorted(str(each) for each in path.iterdir())
            named = [each for each in listed if _IMAGE_NAME.fullmatch(os.path.basename(each))]
            label = class_names.index(path.name)
            part = list(pool.map(functools.partial(_look, label=label), named))
            photos += part
            for photo in part:
                if photo.damage:
                    report.found(photo.path, f"left out: {photo.damage}")
            kinds = collections.Counter(photo.kind for photo in part if not photo.damage)
            if not kinds:
                report.damaged(str(path), "no usable PNG or JPEG in it")
                continue
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            others = sorted(map(os.path.basename, set(listed) - set(named)))
            ignored = f"; not read: {', '.join(others)}" if others else ""
            report.found(str(path), f"{counts}{ignored}")
    return photos


def _look(path: str, *, label: int) -> _Photo:
    try:
        encoded = epath.Path(path).read_bytes()
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"more than 8 bits a channel (mode {image.mode})")
            image.load()  # the whole image; opening reads its header only
            kind = f"{image.format} {image.mode}"
            return _Photo(path, label, len(encoded), kind, image.height, image.width)
    except Exception as error:  # what a damaged image makes Pillow raise has no common class
        return _Photo(path, label, 0, damage=f"{type(error).__name__}: {error}")


def _split(photos: Sequence[_Photo]) -> archives.Split:
    labels = np.array([photo.label for photo in photos], np.int64)

    def read(k: int) -> bytes:
        return epath.Path(photos[k].path).read_bytes()

    return archives.Split(labels, read, sum(photo.num_bytes for photo in photos))
