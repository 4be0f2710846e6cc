"""Lists photographs inside uncompressed tars, such as ImageNet's; they are read where they lie.

A tar is read once from header to header. What is kept of a photograph is its place, in a tar inside
a tar too, so nothing is ever unpacked.
"""

import collections
import io
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

from etils import epath

from functa.data.prepare import photographs, sources

_TAR = re.compile(r"[^.].*\.tar", re.IGNORECASE)
_END = 512  # bytes of the empty block behind the last file of a tar


class _Member(NamedTuple):
    """A photograph: path is of folders, tars without their ending, and the file."""

    path: tuple[str, ...]
    offset: int
    num_bytes: int


class _Contents(NamedTuple):
    """Of a tar: the photographs, and all folders and tars that may hold some."""

    members: list[_Member]
    folders: set[tuple[str, ...]]


class _Part(io.RawIOBase):
    """A tar inside a tar, as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, num_bytes: int):
        self._file, self._offset, self._num_bytes, self._at = file, offset, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}
        self._at = start[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self._num_bytes - self._at))
        read = os.pread(self._file.fileno(), count, self._offset + self._at)
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)


def listing(
    paths: Sequence[str], report: sources.Report, *, labels: str | None
) -> list[photographs.Photo]:
    """Photographs of one or more tars.

    A photograph lies in a folder, or in a tar inside the tar, that is named as its class. The
    split is the name of a folder above, or else a word of the tar's own name
    (ILSVRC2012_img_train.tar), or else none.

    Args:
      labels: a text file for the one tar without class folders (ILSVRC2012_img_val.tar); see
        `read_labels`.
    Raises:
      ValueError: `labels` do not fit, or folders from which no class can be told.
      sources.UnusableSourceError: a tar is cut off or is none.
    """
    found = {}
    for path in paths:
        report.found(path, "looking for the images in it")
        try:
            found[path] = _contents(path, report)
        except (OSError, tarfile.TarError, ValueError) as error:
            report.damaged(path, f"not a whole tar: {error}")
    report.refuse_damage()
    flat = [path for path, held in found.items() if len({m.path[:-1] for m in held.members}) == 1]
    # A tar of one class has one folder too.
    flat = [path for path in flat if len(found[path].members[0].path) == 1] or flat
    if labels is not None and len(flat) != 1:
        raise ValueError(
            f"--labels is for the one tar without class folders; there are {len(flat)} such"
        )
    photos: list[photographs.Photo] = []
    for path, held in found.items():
        if labels is not None and path in flat:
            photos += _labelled(path, held.members, read_labels(labels, held.members), report)
        else:
            photos += _in_classes(path, held, report)
    return photos


def read_labels(path: str, members: Sequence[_Member]) -> dict[str, str]:
    """File name -> class, from a text file of one line a photograph: `FILE CLASS`, or `CLASS` alone
    in the order of the sorted file names.

    Raises:
      ValueError: not one line for each, or bare numbers in their order: those of ImageNet's
        ILSVRC2012_validation_ground_truth.txt count the classes in an order of their own, which
        is written in the kit's meta.mat and is not that of the names.
    """
    lines = [line.split() for line in epath.Path(path).read_text().splitlines() if line.strip()]
    names = sorted(member.path[-1] for member in members)
    if len(lines) != len(names):
        raise ValueError(f"{path} has {len(lines):,} labels for {len(names):,} images")
    widths = {len(line) for line in lines}
    if widths not in ({1}, {2}):
        raise ValueError(f"{path}: each line must be CLASS, or each FILE CLASS")
    if widths == {1} and all(line[0].isdecimal() for line in lines):
        raise ValueError(
            f"{path} holds numbers such as {lines[0][0]}, which are no names of classes. Those of "
            "ILSVRC2012_validation_ground_truth.txt follow the kit's meta.mat, not the order of "
            "the names; bring the names (n01440764 ...), a line each, or lines of FILE CLASS"
        )
    if widths == {1}:
        return {name: line[0] for name, line in zip(names, lines, strict=True)}
    classes = {line[0]: line[1] for line in lines}
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ValueError(f"{path} has no line for {len(unknown)} images, such as {unknown[0]}")
    return classes


def _contents(path: str, report: sources.Report) -> _Contents:
    held = _Contents([], set())
    with open(path, "rb") as file:
        _walk(file, (), os.path.basename(path), held, report)
    if not held.members:
        report.damaged(path, "no PNG or JPEG in it")
    return held


def _walk(
    file: BinaryIO, above: tuple[str, ...], shown: str, held: _Contents, report: sources.Report
) -> None:
    """Adds what an open tar holds; offsets count from the beginning of `file`."""
    others = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            # A million of them would take gigabytes.
            tar.members = []  # type: ignore[attr-defined]
            inside = tuple(part for part in member.name.split("/") if part not in ("", "."))
            name = inside[-1] if inside else ""
            if member.isdir():
                if inside:  # "." is no class
                    held.folders.add(above + inside)
            elif member.isreg() and photographs.NAME.fullmatch(name):
                held.members.append(_Member(above + inside, member.offset_data, member.size))
            elif member.isreg() and _TAR.fullmatch(name) and not above:
                folders = (*inside[:-1], name[: -len(".tar")])
                held.folders.add(folders)
                first = len(held.members)
                part = io.BufferedReader(_Part(file, member.offset_data, member.size))
                try:
                    _walk(part, folders, f"{shown}/{name}", held, report)
                except tarfile.TarError as error:
                    raise ValueError(f"{shown}/{name}: {error}") from error
                held.members[first:] = [
                    each._replace(offset=member.offset_data + each.offset)
                    for each in held.members[first:]
                ]
            else:
                others.append("/".join(inside))
        # tarfile takes a damaged header for the end.
        file.seek(tar.offset)
        if file.read(_END) != bytes(_END):
            raise ValueError(f"{shown} breaks off after {tar.offset:,} bytes")
    if others:
        report.found(shown, photographs.not_read(others))


def _labelled(
    path: str, members: Sequence[_Member], classes: Mapping[str, str], report: sources.Report
) -> list[photographs.Photo]:
    photos = [
        _photo(path, member, folders=member.path[:-1], class_name=classes[member.path[-1]])
        for member in members
    ]
    report.found(path, f"{len(photos):,} images of {len(set(classes.values())):,} classes")
    return photos


def _in_classes(path: str, held: _Contents, report: sources.Report) -> list[photographs.Photo]:
    """The members of a tar with their splits and classes, and a line for each class."""
    by_depth = sorted((member.path for member in held.members), key=len)
    shallow, deep = by_depth[0], by_depth[-1]
    if len(shallow) < 2 and len(deep) < 2:
        raise ValueError(f"{path}: {shallow[0]} lies in no class folder; bring --labels=FILE")
    if len(shallow) != len(deep):
        raise ValueError(
            f"{path}: which folders are classes? {'/'.join(shallow)} and {'/'.join(deep)} do not "
            "lie equally deep"
        )
    photos = []
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for member in held.members:
        *folders, class_name, _ = member.path
        photos.append(_photo(path, member, folders=folders, class_name=class_name))
        counts[member.path[:-1]] += 1
    beside = {folder[:-1] for folder in counts}
    for folder in sorted(held.folders | set(counts)):
        if folder in counts or folder[:-1] in beside:
            shown = "/".join((os.path.basename(path), *folder))
            photographs.tell(shown, counts[folder], [], report)
    places: dict[tuple[str, str], str] = {}
    for photo in photos:
        place = os.path.dirname(photo.name)
        if places.setdefault((photo.split, photo.class_name), place) != place:
            other = places[photo.split, photo.class_name]
            raise ValueError(f"{path}: class {photo.class_name} lies in {other} and in {place}")
    return photos


def _photo(
    path: str, member: _Member, *, folders: Sequence[str], class_name: str
) -> photographs.Photo:
    """folders: those in which the split may be named."""
    tar = os.path.basename(path)
    words = [*reversed(folders), *re.findall("[a-z]+", tar.lower())]
    split = next((photographs.SPLITS[word] for word in words if word in photographs.SPLITS), "")
    name = "/".join((tar, *member.path))
    return photographs.Photo(split, class_name, name, path, member.offset, member.num_bytes)
