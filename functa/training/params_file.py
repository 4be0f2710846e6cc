"""Parameters in one .npz file, for models that are passed on. It holds arrays only, and their digest."""

import io
from typing import Any

import jax
import numpy as np
from etils import epath

from functa.runtime.errors import DamagedFileError
from functa.training.checkpoint import digest

_DIGEST = "digest"


def write_params(path: epath.PathLike, params: Any) -> None:
    """Writes a pytree of arrays. Equal parameters give equal bytes."""
    arrays = {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **{_DIGEST: digest(params)})
    epath.Path(path).write_bytes(buffer.getvalue())


def read_params(path: epath.PathLike, shapes: Any) -> Any:
    """Reads what `write_params` wrote, as NumPy arrays.

    Args:
      shapes: pytree of ShapeDtypeStruct.
    Raises:
      DamagedFileError: the file is damaged, or holds other arrays.
    """
    path = epath.Path(path)
    try:
        with (
            path.open("rb") as file,
            np.load(io.BytesIO(file.read()), allow_pickle=False) as content,
        ):
            arrays = dict(content)
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        raise DamagedFileError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    recorded = str(arrays.pop(_DIGEST, ""))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(key, simple=True, separator="/") for key, _ in leaves]
    wrong = [
        name
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if name not in arrays
        or arrays[name].shape != leaf.shape
        or arrays[name].dtype != leaf.dtype
    ]
    if wrong or len(arrays) != len(names):
        raise DamagedFileError(
            f"{path} does not hold the parameters of this config: {len(wrong)} of {len(names)} arrays are "
            f"missing or have another shape, first {wrong[:1]}"
        )
    params = jax.tree_util.tree_unflatten(structure, [arrays[name] for name in names])
    if digest(params) != recorded:
        raise DamagedFileError(f"{path} is damaged: its digest is {digest(params)}, not {recorded}")
    return params
