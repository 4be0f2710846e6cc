"""Flags of a program with a config: what is wrong with them is told in a line, exit status 2."""

import pathlib
import re
import sys
from collections.abc import Callable

from absl import flags


def refuse(program: str, message: str) -> int:
    """Tells what a person must mend; the exit status for it."""
    print(f"{program}: {message}", file=sys.stderr)
    return 2


def parser(program: str, config: flags.FlagHolder) -> Callable[[list[str]], list[str]]:
    """For `absl.app.run(main, flags_parser=...)`: absl's parser, with a misspelt key or a wrong type told in
    a line or two instead of a traceback.

    Args:
      config: of ml_collections.config_flags.DEFINE_config_file.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                _ = (
                    config.value.name
                )  # a file that is not there is noticed by the first look inside
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            sys.exit(refuse(program, explain_config_error(error)))
        if len(rest) > 1:
            sys.exit(refuse(program, f"unknown arguments: {' '.join(rest[1:])}"))
        return rest

    return parse


def explain_config_error(error: Exception) -> str:
    """One line about a config that cannot be loaded or a key that cannot be set."""
    # ml_collections: "'widht'\nDid you mean ...", in quotes and escapes of its own.
    if meant := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', str(error)):
        return f"unknown config key {meant[2]}; did you mean {meant[1]}?"
    if key := re.fullmatch(r"['\"]+(\w+)['\"]+", str(error)):
        return f"unknown config key {key[1]}; configs/common.py lists them"
    if missing := re.search(r"No such file or directory: '(.+[.]py)'", str(error)):
        path = pathlib.Path(missing[1])
        beside = sorted(path.parent.glob("*.py"))
        names = [file.stem for file in beside if "def get_config" in file.read_text()]
        there = f"; {path.parent} has {', '.join(names)}" if names else ""
        return f"there is no config {path}{there}"
    # A config file that raises comes wrapped with its traceback: what it said is the last line.
    lines = str(error).strip().splitlines()
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]
