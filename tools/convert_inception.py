#!/usr/bin/env python3
"""Turns the public PyTorch checkpoint of the FID Inception network into weights for functa.

    tools/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.npz

PyTorch is not needed. Both forms of its files are read, the zip and the older one, by an unpickler
that makes tensors and containers only. Where the name of the file ends in the beginning of its
SHA-256, as this one's does, that is compared. The classifier at the end is left out.

Exit status: 0 the file is written; 2 it is not, for the reason that is told.
"""

import argparse
import collections
import hashlib
import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from functa.evaluation import inception

_MAGIC = 0x1950A86A20F9469CFC6C  # what the older form begins with
_LEFT_OUT = re.compile(r"(fc|AuxLogits)\..*|.*\.num_batches_tracked")
_NAMES = {
    "conv.weight": "kernel",
    "bn.weight": "scale",
    "bn.bias": "bias",
    "bn.running_mean": "mean",
    "bn.running_var": "variance",
}


class Storage(NamedTuple):
    """Numbers in the file: `length` of `dtype` under `key`."""

    dtype: str
    key: str
    length: int


class Tensor(NamedTuple):
    """A view of a storage, in numbers, not bytes."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """In place of torch._utils._rebuild_tensor_v2."""
    return Tensor(storage, offset, tuple(size), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Makes containers and tensors only; any other pickle could run any program."""

    _allowed = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which weights never do")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or view not in ([], [None]):
            raise pickle.UnpicklingError(f"holds a {kind} of an unknown form")
        return Storage(dtype, key, length)


def read_checkpoint(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint that holds nothing else, by name.

    Raises:
      ValueError: it is none, it is damaged, or it asks for more than tensors.
    """
    try:
        file = io.BytesIO(data)
        if data.startswith(b"PK"):
            state, bytes_of = _read_zip(file)
        else:
            state, bytes_of = _read_older(file)
        return {str(name): _array(tensor, bytes_of) for name, tensor in state.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"no checkpoint of tensors: {error}") from error


def _read_zip(file: io.BytesIO) -> tuple[dict[Any, Any], Callable[[Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = name.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        order = archive.read(f"{folder}byteorder")
        if order != b"little":
            raise ValueError(f"its byte order is {order!r}")
    state = _Unpickler(io.BytesIO(archive.read(name))).load()
    return state, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _read_older(file: io.BytesIO) -> tuple[dict[Any, Any], Callable[[Storage], bytes]]:
    """Five pickles (magic number, version, system, the object, the keys of its storages), then each storage
    with its length."""
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it does not begin as one")
    _Unpickler(file).load()
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("its byte order is not little-endian")
    state = _Unpickler(file).load()
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    held = {}
    for key in _Unpickler(file).load():
        (length,) = struct.unpack("<q", file.read(8))
        held[key] = file.read(length * np.dtype(storages[key].dtype).itemsize)
    return state, lambda storage: held[storage.key]


def _array(tensor: Tensor, bytes_of: Callable[[Storage], bytes]) -> np.ndarray:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"it holds a {type(tensor).__name__}")
    numbers = np.frombuffer(bytes_of(tensor.storage), tensor.storage.dtype)
    if len(numbers) != tensor.storage.length:
        raise ValueError(f"{len(numbers)} numbers in place of {tensor.storage.length}")
    # Of a contiguous tensor; those of one entry may have any stride.
    strides = [math.prod(tensor.size[axis + 1 :]) for axis in range(len(tensor.size))]
    for size, stride, expected in zip(tensor.size, tensor.stride, strides, strict=True):
        if size > 1 and stride != expected:
            raise ValueError(f"a tensor {tensor.size} has strides {tensor.stride}")
    stop = tensor.offset + math.prod(tensor.size)
    if not 0 <= tensor.offset <= stop <= len(numbers):
        raise ValueError(f"a tensor {tensor.size} at {tensor.offset} of {len(numbers)} numbers")
    return numbers[tensor.offset : stop].reshape(tensor.size)


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights as functa/inception.py wants them, from those of the PyTorch network.

    Raises:
      ValueError: a tensor of another network, or one that is missing.
    """
    weights = {}
    for name, array in state.items():
        if _LEFT_OUT.fullmatch(name):
            continue
        layer, _, kind = name.rpartition(".bn." if ".bn." in name else ".conv.")
        kind = f"{'bn' if '.bn.' in name else 'conv'}.{kind}"
        if not layer or kind not in _NAMES:
            raise ValueError(f"{name} is no tensor of this network")
        # PyTorch's kernels are [outputs, inputs, height, width].
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        weights[f"{layer.replace('.', '/')}/{_NAMES[kind]}"] = np.ascontiguousarray(array)
    if problems := inception.misfits(weights):
        raise ValueError(f"{len(problems)} tensors do not fit: {'; '.join(problems[:3])}")
    return weights


def check_digest(name: str, data: bytes) -> str:
    """The SHA-256 of `data`; its beginning is compared with the end of the name where that is hexadecimal.

    Raises:
      ValueError: they differ.
    """
    digest = hashlib.sha256(data).hexdigest()
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if named and not digest.startswith(named[1]):
        raise ValueError(
            f"its SHA-256 begins with {digest[: len(named[1])]}, not with {named[1]} as its name says"
        )
    return digest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="pt_inception-2015-12-05-6726825d.pth")
    parser.add_argument("out", metavar="OUT.npz")
    args = parser.parse_args(argv)
    source, out = epath.Path(args.checkpoint), epath.Path(args.out)
    try:
        data = source.read_bytes()
        digest = check_digest(source.name, data)
        weights = convert(read_checkpoint(data))
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **weights)
        out.write_bytes(packed.getvalue())
    except (ValueError, OSError) as error:
        parser.error(f"{source}: {error}")
    print(f"{out}: {len(weights)} arrays of the checkpoint with SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
