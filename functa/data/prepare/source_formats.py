"""Recognizes the format of a source by its file names and opens it."""

import contextlib
import os
import re
import tarfile
import zlib
from collections.abc import Sequence

from etils import epath

from functa.data.prepare import arrays, folders, photographs, tars
from functa.data.prepare.sources import Report, SourceDataset
from functa.runtime import storage
from functa.runtime.errors import UserError

_TAR = re.compile(r".*\.(tar|tgz|tar\.gz)")


def open_source(
    paths: Sequence[epath.PathLike],
    report: Report,
    *,
    test_fraction: float | None,
    labels: str | None,
    min_side: int | None,
) -> SourceDataset:
    """Opens a source. Arrays are read; of photographs, only the locations.

    Args:
      paths: a folder, or one or more files.
      labels: see tars.list_photos.
      test_fraction, min_side: see photographs.make_dataset; min_side None means 1.
    Raises:
      UserError: a path does not exist, the format is unknown, or an argument is not for it.
      DataError: the source is damaged or incomplete.
    """
    files = [epath.Path(path) for path in paths]
    _check_arguments(files, labels=labels, test_fraction=test_fraction, min_side=min_side)
    folder = files[0] if len(files) == 1 and files[0].is_dir() else None
    listing = sorted(folder.iterdir()) if folder else files
    idx = [path for path in listing if arrays.IDX_NAME.search(path.name) and not path.is_dir()]
    cifar = any(arrays.CIFAR_NAME.fullmatch(path.name) for path in listing)
    are_photo_tars = not folder and _are_photo_tars(files)
    if labels is not None and not are_photo_tars:
        raise UserError("--labels is for a tar of images without class folders")
    if are_photo_tars or (folder and not idx and not cifar):
        if folder:
            photos = folders.list_photos(folder, report)
        else:
            photos = tars.list_photos([str(path) for path in files], report, labels=labels)
        return photographs.make_dataset(
            photos, report, test_fraction=test_fraction, min_side=min_side or 1
        )
    if test_fraction is not None:
        raise UserError("--test-fraction is for photographs; this source has its own test split")
    if min_side is not None:
        raise UserError("--min-side is for photographs; this source holds arrays")
    if idx and (folder or len(idx) == len(files)):
        return arrays.read_idx(idx, report)
    if folder or (len(files) == 1 and _TAR.fullmatch(files[0].name)):
        return arrays.read_cifar(files[0], report)
    if len(files) == 1 and files[0].suffix == ".npz":
        return arrays.read_npz(files[0], report)
    raise UserError(
        f"unknown format: {', '.join(map(str, files))}; `functa prepare --help` lists the formats"
    )


def _check_arguments(
    files: Sequence[epath.Path],
    *,
    labels: str | None,
    test_fraction: float | None,
    min_side: int | None,
) -> None:
    required = [*files, *([epath.Path(labels)] if labels else [])]
    missing = [str(path) for path in required if not path.exists()]
    if missing:
        raise UserError(f"no such file or folder: {', '.join(missing)}")
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise UserError(f"--test-fraction must lie between 0 and 1, not {test_fraction}")
    if min_side is not None and min_side < 1:
        raise UserError(f"--min-side must be at least 1, not {min_side}")


def _are_photo_tars(files: Sequence[epath.Path]) -> bool:
    """Whether the files are tars of photographs, not a CIFAR-10 archive.

    Raises:
      UserError: they are, but compressed or in an object store: tars are read by offset.
    """
    if not all(_TAR.fullmatch(path.name) for path in files):
        return False
    first = ""
    damage = (EOFError, OSError, tarfile.TarError, zlib.error)  # the reader will report it
    with contextlib.suppress(*damage), tarfile.open(files[0]) as tar:
        first = next((os.path.basename(member.name) for member in tar if member.isreg()), "")
    if first == "readme.html" or arrays.CIFAR_NAME.fullmatch(first):
        return False
    compressed = any(path.suffix != ".tar" for path in files)
    remote = any(storage.is_remote(path) for path in files)
    if (compressed and first) or (remote and not compressed):
        names = ", ".join(map(str, files))
        raise UserError(f"{names}: tars of photographs must be uncompressed and on a local disk")
    return not compressed
