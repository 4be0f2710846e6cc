"""Configs as plain data: reading, writing, comparing. Their defaults live in configs/ and nowhere else."""

import json
import math
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from functa.runtime import storage
from functa.runtime.errors import DamagedFileError

# May differ between two commands on one workdir: which stages to run, on what, and where images lie, not
# what is computed.
_FREE = (
    "stages",
    "mesh.data",
    "mesh.fsdp",
    "mesh.cell",
    "data.data_dir",
    "data.cache",
    "classify.cache",
    "generate.cache",
)
_FREE_BUT_COMMON = ("stages", "mesh.data", "mesh.fsdp", "mesh.cell")
# Of a stage whose folder is not there yet, all of its own keys too.
_STAGES = ("encode", "classify", "generate")


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Nested dict of JSON values; tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_dict`; lists become tuples."""

    def restore(value):
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return tuple(restore(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(restore(values))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def decisive(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a run must have in common: {"field.width": 64, ...}."""
    flat = flatten(to_dict(config))
    return {
        key: value for key, value in flat.items() if key in _FREE_BUT_COMMON or key not in _FREE
    }


def load(workdir: epath.PathLike) -> ConfigDict:
    """The frozen config of a run.

    Raises:
      ValueError: `workdir` holds no run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: {workdir} is not the directory of a run")
    return from_dict(read_json(path))


def freeze(config: ConfigDict, workdir: epath.PathLike) -> list[str]:
    """Writes workdir/config.json, or compares with the one that is there.

    Returns:
      One line a key that differs where it may not, and how to go on; config.json is left then.
    """
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    new = to_dict(config)
    different = []
    if path.exists():
        old, now = flatten(read_json(path)), flatten(new)
        for key in sorted(old.keys() | now.keys()):
            stage = key.split(".")[0]
            begun = stage not in _STAGES or (workdir / stage).exists()
            if old.get(key) != now.get(key) and key not in _FREE and begun:
                way = (
                    f"remove {workdir / stage} to change it"
                    if stage in _STAGES
                    else "the same config"
                )
                different.append(
                    f"{key}: {old.get(key, '(absent)')} in {path}, {now.get(key, '(absent)')} now; "
                    f"give another --workdir or {way}"
                )
        if different or old == now:
            return different
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, new)
    return []


def range_errors(values: dict[str, tuple[float, float, float]]) -> list[str]:
    """One line for each {name: (value, low, high)} that is not a finite number from low to high."""
    return [
        f"{name}={value} must be from {low:g} to {high:g}"
        for name, (value, low, high) in values.items()
        if not (math.isfinite(value) and low <= value <= high)
    ]


def read_json(path: epath.PathLike) -> Any:
    """Contents of a JSON file.

    Raises:
      DamagedFileError: it is not JSON.
    """
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete it, and its folder if it belongs to a stage, and "
            "run again"
        ) from error


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes beside and renames: a reader never sees half a file, after a loss of power neither."""
    path = epath.Path(path)
    text = json.dumps(value, indent=1)
    if storage.is_remote(path):  # an object is there whole or not at all
        path.write_text(text)
        return
    beside = path.parent / f"{path.name}.partial"
    with storage.explain_disk_full(path, len(text)):
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
