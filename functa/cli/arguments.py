"""Arguments that several sub-commands take."""

import argparse
import re
from collections.abc import Callable

from etils import epath

from functa.runtime.errors import UserError, as_user_errors


def new_directory(path: str) -> epath.Path:
    """The directory of --out. Raises UserError unless it is absent or empty."""
    out = epath.Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} exists and is not an empty directory: choose another one")
    return out


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds --data-dir, for commands that read a functaset, which a released model encodes at first."""
    parser.add_argument(
        "--data-dir", metavar="DIR", help="data set of a released model (default: as in its config)"
    )


def functaset_directory(name: str, data_dir: str | None) -> epath.Path:
    """Directory of a functaset: `name` itself, or that of the run or released model `name`.

    Args:
      data_dir: see `add_data_dir`.
    Raises:
      UserError: there is no such directory or model.
    """
    path = epath.Path(name)
    if path.is_dir() and not (path / "model.json").exists():
        return path / "functaset" if (path / "functaset").is_dir() else path
    import functa  # imports JAX, which the other directories do not need

    with as_user_errors():
        return functa.load(name, data_dir=data_dir).functaset_directory


def integers(least: int) -> Callable[[str], list[int]]:
    """Parser of a list of different integers of at least `least`: "1,4" -> [1, 4]."""

    def parse(text: str) -> list[int]:
        numbers = [int(part) for part in text.split(",") if re.fullmatch(r"\d+", part)]
        if len(numbers) < text.count(",") + 1 or min(numbers) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be integers from {least}, as in 1,4")
        return list(dict.fromkeys(numbers))

    return parse
