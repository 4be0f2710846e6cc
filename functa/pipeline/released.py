"""Released models: trained runs as arrays, without checkpoints and latents.

    MODEL/README.md                    model card
    MODEL/model.json                   format version and digests of the arrays
    MODEL/config.json, environment.json
    MODEL/STAGE/metrics.json           of the complete stages
    MODEL/functaset/manifest.json      statistics of the training latents
    MODEL/meta_learn/field.npz         parameters, one array per leaf of the pytree
    MODEL/classify/best.npz, MODEL/generate/best.npz
    MODEL/generate/denoising_error.npz

`functa export RUN --to=model` makes such a directory. Those in functa/released are found by name.
"""

import difflib
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from functa.runtime import config as config_lib
from functa.runtime import digests
from functa.runtime.errors import DamagedFileError, UserError
from functa.training import checkpoint

_FOLDER = pathlib.Path(__file__).parents[1] / "released"
_DESCRIPTION = "model.json"


def names() -> list[str]:
    """Names of the models in the package."""
    return sorted(file.parent.name for file in _FOLDER.glob(f"*/{_DESCRIPTION}"))


def find_run(run: epath.PathLike) -> epath.Path:
    """Directory of a run: `run` itself if it holds one, or that of the released model of this name.

    Raises:
      UserError: there is neither.
    """
    path = epath.Path(run)
    if (path / "config.json").exists():
        return path
    if str(run) in names():
        return epath.Path(_FOLDER / str(run))
    similar = difflib.get_close_matches(path.name, names(), n=1)
    raise UserError(
        f"{run} is neither the directory of a run ({path / 'config.json'} does not exist) nor a released model "
        f"({', '.join(names())})" + (f"; did you mean {similar[0]}?" if similar else "")
    )


def is_model(directory: epath.PathLike) -> bool:
    """Whether a directory holds arrays in place of checkpoints and latents."""
    return (epath.Path(directory) / _DESCRIPTION).exists()


def write_arrays(directory: epath.Path, name: str, tree: Any) -> None:
    """Writes the arrays of a pytree to directory/name."""
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def write_description(directory: epath.Path) -> None:
    """Writes model.json, last: the directory is then a model."""
    files = sorted(str(file.relative_to(directory)) for file in directory.glob("*/*.npz"))
    config_lib.write_json(
        directory / _DESCRIPTION,
        {
            "format": checkpoint.FORMAT,
            "arrays": {file: digests.file_digest(directory / file) for file in files},
        },
    )


def read_arrays(directory: epath.Path, name: str, shapes: Any) -> Any:
    """Reads a pytree that `write_arrays` has written.

    Args:
      shapes: pytree of jax.ShapeDtypeStruct.
    Returns:
      The pytree, of NumPy arrays.
    Raises:
      UserError: another version of functa wrote the model, or it does not have these arrays.
      DamagedFileError: the bytes differ from those that were written.
    """
    description, file = config_lib.read_json(directory / _DESCRIPTION), directory / name
    if description["format"] != checkpoint.FORMAT:
        raise UserError(
            f"{directory} has format {description['format']}, but this version of functa reads format "
            f"{checkpoint.FORMAT}"
        )
    if name not in description["arrays"]:
        raise UserError(f"{directory} has no {name}: the model was exported without this stage")
    if not file.exists() or digests.file_digest(file) != description["arrays"][name]:
        raise DamagedFileError(f"{file} is damaged: install functa again")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        arrays = dict(archive)

    def read(path: Any, leaf: Any) -> np.ndarray:
        key = jax.tree_util.keystr(path)
        array = arrays.pop(key, None)
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise UserError(f"{file} has no array {key} {leaf.dtype}{list(leaf.shape)}")
        return array

    tree = jax.tree_util.tree_map_with_path(read, shapes)
    if arrays:
        raise UserError(f"{file} has arrays that the config does not describe: {', '.join(arrays)}")
    return tree
