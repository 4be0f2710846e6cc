"""Copies of a functaset in formats of other programs: NumPy, HDF5 and Parquet.

All hold the same arrays for every split:

    latents  [n, i, j, d] float16 or float32; other stored dtypes become float32
    label    [n] int32, -1 if unknown
    id       [n] int64, index of the image in its split
    copy     [n] int32, number of the augmented copy; 0 is the image itself
    psnr     [n] float32, in dB

Records are read and written in blocks, so a functaset may be larger than the memory.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from functa.data.functaset import format
from functa.data.functaset.reader import Functaset
from functa.runtime import storage
from functa.runtime.errors import UserError

_BLOCK_RECORDS = 4096
_VALUES = {"label": np.int32, "id": np.int64, "copy": np.int32, "psnr": np.float32}


def export(functaset: Functaset, out: epath.PathLike, *, to: str) -> list[epath.Path]:
    """Writes the splits that have records. Returns the files.

    Args:
      out: directory, which must exist.
      to: a key of FORMATS.
    Raises:
      UserError: a package is missing, or `out` is in an object store.
    """
    out = epath.Path(out)
    if storage.is_remote(out):
        raise UserError(f"--out={out} must be a local directory")
    splits = [name for name in functaset.manifest.splits if functaset.num_examples(name)]
    required = sum(
        functaset.num_examples(name) * _row_dtype(functaset, "latents").itemsize for name in splits
    )
    with storage.explain_disk_full(out, required * int(np.prod(functaset.manifest.latent_shape))):
        return FORMATS[to](functaset, splits, out)


def _write_npz(functaset: Functaset, splits: list[str], out: epath.Path) -> list[epath.Path]:
    """One SPLIT.npz for each split."""
    files = [out / f"{split}.npz" for split in splits]
    for split, file in zip(splits, files, strict=True):
        values: dict[str, list[np.ndarray]] = {name: [] for name in _VALUES}
        count, dtype = functaset.num_examples(split), _row_dtype(functaset, "latents")
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (count, *functaset.manifest.latent_shape),
        }
        with zipfile.ZipFile(file, "w") as archive:
            # The latents are written block by block, which numpy.savez cannot.
            with archive.open("latents.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for block in _blocks(functaset, split):
                    stream.write(block["latents"].tobytes())
                    for name in values:
                        values[name].append(block[name])
            for name, parts in values.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.concatenate(parts), allow_pickle=False)
    return files


def _write_hdf5(functaset: Functaset, splits: list[str], out: epath.Path) -> list[epath.Path]:
    """functaset.h5 with a group for each split, and the statistics of the latents as attributes."""
    h5py = _import("h5py")
    path = out / "functaset.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(_attributes(functaset))
        for split in splits:
            count, group = functaset.num_examples(split), file.create_group(split)
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_VALUES, ())
            shapes["latents"] = tuple(functaset.manifest.latent_shape)
            for name, shape in shapes.items():
                group.create_dataset(name, (count, *shape), _row_dtype(functaset, name))
            start = 0
            for block in _blocks(functaset, split):
                rows = slice(start, start := start + len(block["id"]))
                for name, values in block.items():
                    group[name][rows] = values
    return [path]


def _write_parquet(functaset: Functaset, splits: list[str], out: epath.Path) -> list[epath.Path]:
    """One SPLIT.parquet for each split. A cell of the column latents is a list of i*j*d numbers."""
    pa, parquet = _import("pyarrow"), _import("pyarrow.parquet")
    size = int(np.prod(functaset.manifest.latent_shape))
    latents = pa.list_(pa.from_numpy_dtype(_row_dtype(functaset, "latents")), size)
    types = {name: pa.from_numpy_dtype(np.dtype(dtype)) for name, dtype in _VALUES.items()}
    metadata = {name: json.dumps(value) for name, value in _attributes(functaset).items()}
    schema = pa.schema({"latents": latents} | types, metadata=metadata)
    files = [out / f"{split}.parquet" for split in splits]
    for split, file in zip(splits, files, strict=True):
        with parquet.ParquetWriter(file, schema) as writer:
            for block in _blocks(functaset, split):
                numbers = pa.array(block["latents"].reshape(-1))
                columns = [pa.FixedSizeListArray.from_arrays(numbers, size)]
                columns += [pa.array(block[name]) for name in types]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return files


FORMATS: dict[str, Callable[[Functaset, list[str], epath.Path], list[epath.Path]]] = {
    "npz": _write_npz,
    "hdf5": _write_hdf5,
    "parquet": _write_parquet,
}


def _blocks(functaset: Functaset, split: str) -> Iterator[dict[str, np.ndarray]]:
    source, dtype = functaset.source(split), _row_dtype(functaset, "latents")
    for start in range(0, source.num_examples, _BLOCK_RECORDS):
        records = source.read(
            np.arange(start, min(start + _BLOCK_RECORDS, source.num_examples), dtype=np.int64)
        )
        latents = np.ascontiguousarray(format.float32_latents(records), dtype)
        yield {"latents": latents} | {name: records[name].astype(_VALUES[name]) for name in _VALUES}


def _row_dtype(functaset: Functaset, name: str) -> np.dtype:
    if name == "latents":
        return np.dtype(np.float16 if functaset.manifest.dtype == "float16" else np.float32)
    return np.dtype(_VALUES[name])


def _attributes(functaset: Functaset) -> dict[str, Any]:
    manifest = functaset.manifest
    keys = ("latent_shape", "class_names", "mean", "std", "scalar_mean", "scalar_std")
    return {key: getattr(manifest, key) for key in (*keys, "field_digest")}


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed: run pip install 'functa[export]'"
        ) from error
