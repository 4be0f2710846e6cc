"""Readers of published image arrays: MNIST-style idx files, CIFAR-10 archives and .npz files."""

import functools
import gzip
import hashlib
import io
import math
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from functa.data.prepare.sources import EncodedImage, Report, SourceDataset, SourceSplit
from functa.runtime.digests import json_digest

# train-images-idx3-ubyte.gz, train-images.idx, ... but not the class_to_idx.json of image folders
IDX_NAME = re.compile(r"idx\d|ubyte|\.idx(\.gz)?$", re.IGNORECASE)
CIFAR_NAME = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?|batches\.meta(\.txt)?")
_CIFAR_SPLITS = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_CIFAR_BATCH = 10000  # images in each of the six files
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_UNREADABLE = (EOFError, OSError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


def read_idx(paths: Sequence[epath.Path], report: Report) -> SourceDataset:
    """Reads four files of unsigned bytes: images and labels of "train" and of "test" or "t10k".

    Raises:
      DataError: a file is missing, truncated or inconsistent with the others.
    Source: the format is described on the MNIST page, LeCun et al. 1998.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            array = _idx_array(path.read_bytes())
        except _UNREADABLE as error:
            report.add_problem(path.name, f"not a complete idx file: {error}")
            continue
        key = f"{'y' if array.ndim == 1 else 'x'}_{'train' if 'train' in path.name else 'test'}"
        if key in arrays:
            report.add_problem(path.name, f"a second file for {key}")
        arrays[key] = array
    return _dataset(arrays, class_names=(), report=report)


def _idx_array(content: bytes) -> np.ndarray:
    data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if len(data) < 8 or data[:3] != b"\0\0\x08":
        raise ValueError(f"it starts with {data[:4].hex() or 'nothing'}, not with 000008")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"the header is truncated after {len(data)} bytes")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(f"the header says {shape}, but {len(data) - start} bytes follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar(path: epath.Path, report: Report) -> SourceDataset:
    """Reads CIFAR-10, for Python or binary: the .tar.gz, or the folder with the batches.

    Raises:
      DataError: a batch is missing or does not hold 10,000 images with labels.
    Source: Krizhevsky 2009; the layouts are described on the page of the data set.
    """
    files = _cifar_files(path, report)
    binary = any(name.endswith(".bin") for name in files)

    def parse(name: str, function: Callable[[bytes], Any]) -> Any:
        """function(content) of a file, or None and a problem."""
        try:
            return function(files[name])
        except Exception as error:  # a damaged pickle can raise anything
            report.add_problem(name, f"damaged: {error}" if name in files else "missing")
            return None

    arrays: dict[str, np.ndarray] = {}
    parse_batch = functools.partial(_cifar_batch, binary=binary)
    for split, names in _CIFAR_SPLITS.items():
        batches = [parse(name + ".bin" * binary, parse_batch) for name in names]
        if all(batches):
            images, labels = zip(*batches, strict=True)
            arrays |= {f"x_{split}": np.concatenate(images), f"y_{split}": np.concatenate(labels)}
    if binary:
        class_names = parse("batches.meta.txt", lambda content: content.decode().split())
    else:
        class_names = parse("batches.meta", lambda content: _unpickle(content)["label_names"])
    return _dataset(arrays, class_names=tuple(map(str, class_names or ())), report=report)


def _cifar_files(path: epath.Path, report: Report) -> dict[str, bytes]:
    """The batch files of CIFAR in an archive or folder: {name: bytes}. A damaged archive is reported."""
    if path.is_dir():
        names = [file.name for file in path.iterdir() if CIFAR_NAME.fullmatch(file.name)]
        return {name: (path / name).read_bytes() for name in names}
    files: dict[str, bytes] = {}
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                file = archive.extractfile(member)  # None: a folder
                if file is not None and CIFAR_NAME.fullmatch(name):
                    files[name] = file.read()
    except _UNREADABLE as error:
        report.add_problem(path.name, f"truncated or damaged after {len(files)} files: {error}")
    return files


def _cifar_batch(data: bytes, *, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, 3] uint8 and labels [n] of one batch file."""
    if binary:
        rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        pixels, labels = rows[:, 1:], rows[:, 0]
    else:
        batch = _unpickle(data)
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
    if pixels.shape != (_CIFAR_BATCH, 3072) or pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} {pixels.shape}, not uint8 {(_CIFAR_BATCH, 3072)}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _Unpickler(pickle.Unpickler):
    """Loads containers and NumPy arrays only: other pickles can run arbitrary code."""

    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it loads {module}.{name}, which CIFAR-10 never does")
        return self._allowed[module, name]


def _unpickle(data: bytes) -> dict[str, Any]:
    # latin1 keeps the bytes of arrays, which Python 2 wrote as text.
    return _Unpickler(io.BytesIO(data), encoding="latin1").load()


def read_npz(path: epath.Path, report: Report) -> SourceDataset:
    """Reads x_train, y_train, x_test, y_test and, if present, label_names.

    Images are [n, h, w] or [n, h, w, c] uint8, labels [n] or [n, 1] integers.

    Raises:
      DataError: an array is missing or inconsistent, or the file is truncated.
    """
    arrays: dict[str, np.ndarray] = {}
    class_names: tuple[str, ...] = ()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in _KEYS if key in content}
            if "label_names" in content:
                class_names = tuple(map(str, content["label_names"]))
    except _UNREADABLE as error:
        report.add_problem(path.name, f"truncated or damaged: {error}")
    return _dataset(arrays, class_names=class_names, report=report)


def _dataset(
    arrays: dict[str, np.ndarray], *, class_names: tuple[str, ...], report: Report
) -> SourceDataset:
    """Checks the four arrays against each other; images are stored as PNG."""
    report.raise_problems()
    for key in _KEYS:
        if key not in arrays:
            report.add_problem(key, "missing")
    report.raise_problems()
    num_classes = len(class_names) or int(arrays["y_train"].max(initial=0)) + 1
    splits: dict[str, SourceSplit] = {}
    digests: list[Any] = [class_names]
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if problem := _array_problem(images, labels, arrays["x_train"].shape[1:], num_classes):
            report.add_problem(f"{split} split", problem)
            continue
        labels = labels.reshape(-1).astype(np.int64)
        splits[split] = SourceSplit(labels, functools.partial(_png, split, images), images.nbytes)
        sha256 = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        digests.append((images.shape, sha256, labels.tolist()))
    report.raise_problems()
    return SourceDataset(splits, class_names, num_classes, json_digest(digests))


def _array_problem(
    images: np.ndarray, labels: np.ndarray, train_shape: tuple[int, ...], num_classes: int
) -> str:
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or channels not in (1, 3):
        return f"images {images.dtype} {images.shape}, not uint8 [n, h, w] or [n, h, w, 1 or 3]"
    if images.shape[1:] != train_shape:
        return f"images have shape {images.shape[1:]}, those of train {train_shape}"
    if labels.shape not in ((len(labels),), (len(labels), 1)) or labels.dtype.kind not in "iu":
        return f"labels {labels.dtype} {labels.shape}, not integers [n]"
    if len(labels) != len(images) or not len(labels):
        return f"{len(images)} images, but {len(labels)} labels"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"labels {labels.min()} to {labels.max()}, but {num_classes} classes"
    return ""


def _png(split: str, images: np.ndarray, index: int) -> EncodedImage:
    pixels = np.ascontiguousarray(images[index])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    data = io.BytesIO()
    image.save(data, "PNG")
    size = (image.height, image.width)
    return EncodedImage(f"{split} {index}", data.getvalue(), f"PNG {image.mode}", size)
