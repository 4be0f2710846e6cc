"""One-line messages for wrong command-line flags and configs, with exit status 2."""

import pathlib
import re
import sys
from collections.abc import Callable

from absl import flags


def report_user_error(program: str, message: str) -> int:
    """Prints a problem that the user must fix. Returns the exit status 2."""
    print(f"{program}: {message}", file=sys.stderr)
    return 2


def flags_parser(program: str, config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """A parser for `absl.app.run(main, flags_parser=...)` that reports errors without a traceback.

    Args:
      program: name for messages.
      config: flag of ml_collections.config_flags.DEFINE_config_file.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            arguments = flags.FLAGS(argv)
            if config.value is not None:
                _ = config.value.name  # fails if the file does not exist
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            sys.exit(report_user_error(program, explain_config_error(error)))
        if len(arguments) > 1:
            message = f"unknown arguments: {' '.join(arguments[1:])}"
            sys.exit(report_user_error(program, message))
        return arguments

    return parse


def explain_config_error(error: Exception) -> str:
    """One line for an error of absl or ml_collections."""
    text = str(error)
    if keys := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text):
        return f"unknown config key {keys[2]}; did you mean {keys[1]}?"
    if key := re.fullmatch(r"['\"]+(\w+)['\"]+", text):
        return f"unknown config key {key[1]}; configs/common.py lists the keys"
    if file := re.search(r"No such file or directory: '(.+[.]py)'", text):
        return missing_config(pathlib.Path(file[1]))
    # The traceback of a failing config file ends with its own message.
    lines = text.strip().splitlines()
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]


def missing_config(path: pathlib.Path) -> str:
    """One line for a config file that does not exist, with the configs of its folder."""
    siblings = sorted(path.parent.glob("*.py"))
    names = [sibling.stem for sibling in siblings if "def get_config" in sibling.read_text()]
    choices = f"; {path.parent} contains {', '.join(names)}" if names else ""
    return f"config {path} does not exist{choices}"
