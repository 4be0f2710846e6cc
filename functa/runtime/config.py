"""Configs and other JSON files: conversion, comparison, reading and writing."""

import json
import math
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from functa.runtime import storage
from functa.runtime.errors import DamagedFileError

# Keys that may change between two commands on one run directory, because they do not change results.
# The first ones must be equal in all processes of a command; the others may differ between machines.
_SHARED_CHANGEABLE = ("stages", "mesh.data", "mesh.fsdp", "mesh.cell")
_LOCAL_CHANGEABLE = ("data.data_dir", "data.cache", "classify.cache", "generate.cache")
# All keys of these stages may change until the stage has started.
_CHANGEABLE_STAGES = ("encode", "classify", "generate")


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Converts a config to nested dicts of JSON values. Tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_dict`. Lists become tuples."""

    def restore(value):
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        return tuple(restore(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(restore(values))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def shared_settings(config: ConfigDict) -> dict[str, Any]:
    """Settings that must be equal in all processes of a run: {"field.width": 64, ...}."""
    flat = flatten(to_dict(config))
    return {key: value for key, value in flat.items() if key not in _LOCAL_CHANGEABLE}


def load(workdir: epath.PathLike) -> ConfigDict:
    """Reads the config of a run.

    Raises:
      ValueError: `workdir` is not a run directory.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: {workdir} is not the directory of a run")
    return from_dict(read_json(path))


def freeze(config: ConfigDict, workdir: epath.PathLike) -> list[str]:
    """Writes workdir/config.json, or compares the config with that of an existing run.

    Returns:
      One line per key that differs but must not; config.json then stays as it is.
    """
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    new = to_dict(config)
    problems = []
    if path.exists():
        old_values, new_values = flatten(read_json(path)), flatten(new)
        for key in sorted(old_values.keys() | new_values.keys()):
            stage = key.split(".")[0]
            started = stage not in _CHANGEABLE_STAGES or (workdir / stage).exists()
            changeable = key in _SHARED_CHANGEABLE + _LOCAL_CHANGEABLE or not started
            old, now = old_values.get(key, "(absent)"), new_values.get(key, "(absent)")
            if old != now and not changeable:
                fix = "use the same config"
                if stage in _CHANGEABLE_STAGES:
                    fix = f"remove {workdir / stage} to change it"
                problems.append(
                    f"{key}: {old} in {path}, {now} now; use another --workdir or {fix}"
                )
        if problems or old_values == new_values:
            return problems
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, new)
    return []


def range_errors(values: dict[str, tuple[float, float, float]]) -> list[str]:
    """One line per entry of {name: (value, low, high)} that is not a finite number from low to high."""
    return [
        f"{name}={value} must be from {low:g} to {high:g}"
        for name, (value, low, high) in values.items()
        if not (math.isfinite(value) and low <= value <= high)
    ]


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      DamagedFileError: the content is not JSON.
    """
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete it, or the whole directory of its stage, and run again"
        ) from error


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a JSON file atomically: even after a power failure it is complete or absent."""
    path = epath.Path(path)
    text = json.dumps(value, indent=1)
    if storage.is_remote(path):  # object stores write atomically
        path.write_text(text)
        return
    partial = path.parent / f"{path.name}.partial"
    with storage.explain_disk_full(path, len(text)):
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
