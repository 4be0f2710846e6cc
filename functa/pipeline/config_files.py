"""Configs by name: NAME[:OPTIONS], with --config.KEY=VALUE overrides."""

import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

import functa
from functa.runtime import cli_errors
from functa.runtime.errors import UserError

_FOLDER = pathlib.Path(functa.__file__).parent / "configs"


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads configs/NAME.py, or the file of that path, and sets the overridden keys.

    Args:
      name: NAME or NAME.py, then optionally a colon and the options of its `get_config`.
      overrides: flags such as "--config.field.width=64".
    Raises:
      UserError: there is no such config or key, or a value has the wrong type.
    """
    path, _, options = name.partition(":")
    if not path.endswith(".py"):
        path = str(_FOLDER / f"{path}.py")
    argv = ["functa", f"--config={path}:{options}" if options else f"--config={path}", *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        _ = config.value.name  # the file is read at the first access
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(cli_errors.explain_config_error(error)) from error
    return config.value
