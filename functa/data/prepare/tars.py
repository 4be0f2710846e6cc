"""Lists photographs inside uncompressed tars, such as those of ImageNet, without unpacking them.

A tar is read once, from header to header. The list keeps the offset of every photograph in the
file, also of those in a tar inside the tar.
"""

import collections
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

from etils import epath

from functa.data.image_records import IMAGE_NAME
from functa.data.prepare import photographs
from functa.data.prepare.photographs import Photo
from functa.data.prepare.sources import Report
from functa.runtime.errors import UserError

_TAR = re.compile(r"[^.].*\.tar", re.IGNORECASE)
_BLOCK = 512  # bytes; an empty block ends a tar


class _Member(NamedTuple):
    """A photograph in a tar; `path` is its folders, inner tars without .tar, and its file name."""

    path: tuple[str, ...]
    offset: int
    num_bytes: int


class _Contents(NamedTuple):
    """Photographs of a tar, and all folders and inner tars, which may be classes."""

    members: list[_Member]
    folders: set[tuple[str, ...]]


def list_photos(paths: Sequence[str], report: Report, *, labels: str | None) -> list[Photo]:
    """Photographs of one or more tars.

    The class of a photograph is the name of its folder, or of the tar inside the tar that holds it.
    Its split is the name of a folder above, or else a word in the name of the tar
    (ILSVRC2012_img_train.tar), or else "".

    Args:
      labels: text file with the classes of the one tar without class folders
        (ILSVRC2012_img_val.tar); see `read_labels`.
    Raises:
      UserError: `labels` do not match, or the folders do not tell the classes.
      DataError: a file is truncated or not a tar.
    """
    contents = {}
    for path in paths:
        report.info(path, "reading the list of its files")
        try:
            contents[path] = _read_contents(path, report)
        except (OSError, tarfile.TarError, ValueError) as error:
            report.add_problem(path, f"not a complete tar: {error}")
    report.raise_problems()
    flat = [path for path in paths if len({m.path[:-1] for m in contents[path].members}) == 1]
    # A tar of one class has a single folder too.
    flat = [path for path in flat if len(contents[path].members[0].path) == 1] or flat
    if labels is not None and len(flat) != 1:
        raise UserError(f"--labels is for one tar without class folders, but {len(flat)} are given")
    photos: list[Photo] = []
    for path, content in contents.items():
        if labels is not None and path in flat:
            classes = read_labels(labels, content.members)
            photos += [
                _photo(path, member, member.path[:-1], classes[member.path[-1]])
                for member in content.members
            ]
            count = len(set(classes.values()))
            report.info(path, f"{len(content.members):,} images of {count:,} classes")
        else:
            photos += _photos_in_classes(path, content, report)
    return photos


def read_labels(path: str, members: Sequence[_Member]) -> Mapping[str, str]:
    """{file name: class} from a text file.

    It has one line per photograph: either all `FILE CLASS`, or all `CLASS`, in the order of the
    sorted file names.

    Raises:
      UserError: another number of lines, or numbers instead of names.
    """
    lines = [line.split() for line in epath.Path(path).read_text().splitlines() if line.strip()]
    names = sorted(member.path[-1] for member in members)
    if len(lines) != len(names):
        raise UserError(f"{path} has {len(lines):,} labels for {len(names):,} images")
    if all(len(line) == 1 for line in lines) and not all(line[0].isdecimal() for line in lines):
        return {name: line[0] for name, line in zip(names, lines, strict=True)}
    if any(len(line) != 2 for line in lines):
        raise UserError(
            f"{path}: each line must be CLASS, or each line FILE CLASS, where CLASS is a name such as"
            " n01440764. Numbers are refused: those of ILSVRC2012_validation_ground_truth.txt are"
            " indices into meta.mat of the development kit. Convert them to names first"
        )
    classes = dict(lines)
    missing = [name for name in names if name not in classes]
    if missing:
        raise UserError(f"{path} has no line for {len(missing)} images, such as {missing[0]}")
    return classes


def _read_contents(path: str, report: Report) -> _Contents:
    contents = _Contents([], set())
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _walk(file, (), os.path.basename(path), contents, report, end=size)
    if not contents.members:
        report.add_problem(path, "no PNG or JPEG")
    return contents


def _walk(
    file: BinaryIO,
    prefix: tuple[str, ...],
    name: str,
    contents: _Contents,
    report: Report,
    *,
    end: int,
) -> None:
    """Adds the files of the tar that starts at the position of `file` and ends before `end`."""
    num_ignored = 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # a million of them would take gigabytes
            inside = tuple(part for part in member.name.split("/") if part not in ("", "."))
            file_name = inside[-1] if inside else ""
            if member.isdir():
                if inside:  # not "."
                    contents.folders.add(prefix + inside)
            elif member.isreg() and IMAGE_NAME.fullmatch(file_name):
                contents.members.append(_Member(prefix + inside, member.offset_data, member.size))
            elif member.isreg() and _TAR.fullmatch(file_name) and not prefix:
                folder = (*inside[:-1], file_name[: -len(".tar")])
                contents.folders.add(folder)
                file.seek(member.offset_data)
                inner_end = member.offset_data + member.size
                _walk(file, folder, f"{name}/{file_name}", contents, report, end=inner_end)
            else:
                num_ignored += 1
        # tarfile takes a damaged header for the end of the tar.
        file.seek(tar.offset)
        if tar.offset + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(f"{name} is truncated or damaged at byte {tar.offset:,}")
    if num_ignored:
        report.info(name, f"{num_ignored:,} files that are not PNG or JPEG are ignored")


def _photos_in_classes(path: str, contents: _Contents, report: Report) -> list[Photo]:
    """Photographs of a tar with class folders; reports every class."""
    by_depth = sorted((member.path for member in contents.members), key=len)
    shallow, deep = by_depth[0], by_depth[-1]
    if len(deep) < 2:
        raise UserError(f"{path}: {shallow[0]} is in no class folder; set --labels=FILE")
    if len(shallow) != len(deep):
        raise UserError(
            f"{path}: {'/'.join(shallow)} and {'/'.join(deep)} are not equally deep, so that the"
            " class folders are unknown"
        )
    photos = [
        _photo(path, member, member.path[:-2], member.path[-2]) for member in contents.members
    ]
    counts = collections.Counter(member.path[:-1] for member in contents.members)
    parents = {folder[:-1] for folder in counts}
    for folder in sorted(contents.folders | set(counts)):
        if folder[:-1] in parents:
            place = "/".join((os.path.basename(path), *folder))
            photographs.report_class(place, counts[folder], 0, report)
    places: dict[tuple[str, str], str] = {}
    for photo in photos:
        place = os.path.dirname(photo.name)
        other = places.setdefault((photo.split, photo.class_name), place)
        if other != place:
            raise UserError(f"{path}: class {photo.class_name} is both {other} and {place}")
    return photos


def _photo(path: str, member: _Member, folders: Sequence[str], class_name: str) -> Photo:
    """A photograph whose split may be the name of one of `folders`."""
    tar = os.path.basename(path)
    words = [*reversed(folders), *re.findall("[a-z]+", tar.lower())]
    split = next((photographs.SPLITS[word] for word in words if word in photographs.SPLITS), "")
    name = "/".join((tar, *member.path))
    return Photo(split, class_name, name, path, member.offset, member.num_bytes)
