"""Configs by name: NAME[:OPTIONS], with --config.KEY=VALUE overrides."""

import importlib.util
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from functa.runtime import cli_errors
from functa.runtime.errors import UserError

_FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Makes the config of a config file.

    Args:
      name: NAME of functa/configs/NAME.py, or the path of another file (FILE.py); then optionally a
        colon and the options of its `get_config`.
      overrides: flags such as "--config.field.width=64".
    Returns:
      A config that refuses unknown keys.
    Raises:
      UserError: there is no such config, option or key, or a value has the wrong type.
    """
    name, _, options = name.partition(":")
    path = pathlib.Path(name if name.endswith(".py") else _FOLDER / f"{name}.py")
    if not path.is_file():
        raise UserError(cli_errors.missing_config(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    values = flags.FlagValues()
    try:
        spec.loader.exec_module(module)
        config = module.get_config(options or None)
        config.lock()
        argv = ["functa", *overrides]
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(cli_errors.explain_config_error(error)) from error
    return config
