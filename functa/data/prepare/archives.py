"""Readers of published image arrays: MNIST-style idx files, CIFAR-10's archives, .npz files.

Whatever is wrong with a source is found before anything is written, and named by file.
"""

import functools
import gzip
import io
import math
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from functa.data.prepare import sources
from functa.data.prepare.sources import Archive, Report, Sample, Split

# train-images-idx3-ubyte.gz, train-images.idx, ... but not class_to_idx.json, which goes with folders
IDX_NAME = re.compile(r"idx\d|ubyte|\.idx(\.gz)?$", re.IGNORECASE)
CIFAR_NAME = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?|batches\.meta(\.txt)?")
_CIFAR_SPLITS = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_CIFAR_RECORDS = 10000  # in each of the six files
_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_idx(paths: Sequence[epath.Path], report: Report) -> Archive:
    """Four files of unsigned bytes, images and labels of "train" and of "test" or "t10k".

    Source: the format is described at the foot of the MNIST page, LeCun et al. 1998.
    Raises:
      UnusableSourceError: one is missing, cut off or does not fit the others.
    """
    arrays: dict[str, np.ndarray] = {}
    names = {path.name for path in paths}
    for path in paths:
        if path.suffix == ".gz" and path.stem in names:
            report.found(path.name, "not read, as the unpacked file is beside it")
            continue
        try:
            array = _idx_array(path.read_bytes())
        except (EOFError, OSError, ValueError, zlib.error) as error:
            report.damaged(path.name, f"not a whole idx file: {error}")
            continue
        key = f"{'y' if array.ndim == 1 else 'x'}_{'train' if 'train' in path.name else 'test'}"
        if key in arrays:
            report.damaged(path.name, f"a second file for {key}")
        else:
            report.found(path.name, _describe(array))
        arrays[key] = array
    return _from_arrays(arrays, class_names=(), report=report)


def _idx_array(packed: bytes) -> np.ndarray:
    data = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    if len(data) < 8 or data[:3] != b"\0\0\x08":
        raise ValueError(f"it starts with {data[:4].hex() or 'nothing'}, not with 000008")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"its header is cut off after {len(data)} bytes")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(f"its header promises {shape}, but {len(data) - start} bytes follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar(path: epath.Path, report: Report) -> Archive:
    """CIFAR-10 for Python or as binary: the .tar.gz, or the folder with its batches.

    Source: Krizhevsky 2009; the layouts are those of the data set's page.
    Raises:
      UnusableSourceError: a batch is missing or not 10,000 images with labels, or the archive is cut off.
    """
    contents = _cifar_contents(path, report)
    binary = ".bin" if any(name.endswith(".bin") for name in contents) else ""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in _KEYS}
    for split, names in _CIFAR_SPLITS.items():
        for name in names:
            try:
                images, labels = _cifar_batch(contents[name + binary], bool(binary))
            except Exception as error:  # a damaged pickle can raise anything
                report.damaged(name + binary, _reason(error))
                continue
            report.found(name + binary, f"{_describe(images)}, {_describe(labels)}")
            parts[f"x_{split}"].append(images)
            parts[f"y_{split}"].append(labels)
    meta = "batches.meta" + ".txt" * bool(binary)
    class_names: tuple[str, ...] = ()
    try:
        held = contents[meta]
        listed = held.decode().split() if binary else _unpickle(held)["label_names"]
        class_names = tuple(map(str, listed))
        report.found(meta, f"{len(class_names)} classes")
    except Exception as error:
        report.damaged(meta, _reason(error))
    arrays = {key: np.concatenate(part) for key, part in parts.items() if part}
    return _from_arrays(arrays, class_names=class_names, report=report)


def _cifar_contents(path: epath.Path, report: Report) -> dict[str, bytes]:
    """Name -> bytes of the files that could be read."""
    if path.is_dir():
        inside = (each for each in path.iterdir() if CIFAR_NAME.fullmatch(each.name))
        return {each.name: each.read_bytes() for each in inside}
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as packed, tarfile.open(fileobj=packed) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                file = archive.extractfile(member)  # None: a folder
                if file is not None and CIFAR_NAME.fullmatch(name):
                    found[name] = file.read()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        report.damaged(path.name, f"ends or breaks after {len(found)} files: {error}")
    return found


def _reason(error: Exception) -> str:
    return "missing" if isinstance(error, KeyError) else f"damaged: {error}"


def _cifar_batch(data: bytes, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    if binary:
        rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        pixels, labels = rows[:, 1:], rows[:, 0]
    else:
        batch = _unpickle(data)
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
    if pixels.shape != (_CIFAR_RECORDS, 3072) or pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} {pixels.shape}, not uint8 {(_CIFAR_RECORDS, 3072)}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _Unpickler(pickle.Unpickler):
    """Makes containers and NumPy arrays only; any other pickle could run any program."""

    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which CIFAR-10 never does")
        return self._allowed[module, name]


def _unpickle(data: bytes) -> dict[str, Any]:
    # latin1 keeps the bytes of the arrays, which Python 2 wrote as text.
    return _Unpickler(io.BytesIO(data), encoding="latin1").load()


def read_npz(path: epath.Path, report: Report) -> Archive:
    """x_train, y_train, x_test, y_test; images [n, h, w] or [n, h, w, c] uint8; perhaps
    label_names.

    Raises:
      UnusableSourceError: an array is missing or does not fit, or the file is cut off.
    """
    arrays: dict[str, np.ndarray] = {}
    class_names: tuple[str, ...] = ()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            for key in (key for key in _KEYS if key in held):
                arrays[key] = held[key]
                report.found(f"{path.name}:{key}", _describe(arrays[key]))
            if "label_names" in held:
                class_names = tuple(map(str, held["label_names"]))
                report.found(f"{path.name}:label_names", f"{len(class_names)} classes")
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        report.damaged(path.name, f"cut off or broken: {error}")
    return _from_arrays(arrays, class_names=class_names, report=report)


def _describe(array: np.ndarray) -> str:
    if array.ndim > 2:
        return f"{len(array)} images {'x'.join(map(str, array.shape[1:]))}"
    return f"{len(array)} labels {array.min()} to {array.max()}" if array.size else "nothing"


def _from_arrays(
    arrays: dict[str, np.ndarray], *, class_names: tuple[str, ...], report: Report
) -> Archive:
    """Checks the four arrays of _KEYS against each other; their images become PNG."""
    report.refuse_damage()
    for key in _KEYS:
        if key not in arrays:
            report.damaged(key, "missing")
    report.refuse_damage()
    num_classes = len(class_names) or int(arrays["y_train"].max(initial=0)) + 1
    splits, shapes = {}, {}
    parts: list[bytes | memoryview] = list(map(str.encode, class_names))
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        images = images[..., None] if images.ndim == 3 else images
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        shapes[split] = images.shape[1:]
        damage = _damage(images, labels, num_classes)
        if not damage and shapes[split] != shapes["train"]:
            damage = f"its images are {shapes[split]}, those of train {shapes['train']}"
        if damage:
            report.damaged(f"{split} split", damage)
            continue
        labels = labels.astype(np.int64)
        splits[split] = Split(labels, functools.partial(_png, split, images), images.nbytes)
        parts += [str(images.shape).encode(), np.ascontiguousarray(images).data, labels.data]
    report.refuse_damage()
    return Archive(splits, class_names, num_classes, sources.digest(parts))


def _damage(images: np.ndarray, labels: np.ndarray, num_classes: int) -> str:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        return f"images {images.dtype} {images.shape}, not uint8 [n, h, w] or [n, h, w, 1 or 3]"
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return f"labels {labels.dtype} {labels.shape}, not integers [n]"
    if len(labels) != len(images) or not len(labels):
        return f"{len(images)} images, but {len(labels)} labels"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"labels {labels.min()} to {labels.max()} of {num_classes} classes"
    return ""


def _png(split: str, images: np.ndarray, k: int) -> Sample:
    grey = images.shape[3] == 1
    encoded = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(images[k, ..., 0] if grey else images[k]))
    image.save(encoded, "PNG")
    kind = f"PNG {image.mode}"
    return Sample(f"{split} {k}", encoded.getvalue(), kind, (image.height, image.width), damage="")
