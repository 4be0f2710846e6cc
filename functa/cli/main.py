"""Entry point of the `functa` command: finds the sub-command, parses its arguments, reports user errors."""

import argparse
import difflib
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

import argcomplete

from functa.runtime.compilation_cache import use_compilation_cache
from functa.runtime.errors import StorageUnavailableError, UserError

# Name -> one line of help. The module functa.cli.NAME is imported only when NAME is called.
COMMANDS = {
    "run": "run the stages of a config",
    "prepare": "make a data set from archives, folders or arrays",
    "inspect": "show what a functaset holds, and a sheet of decoded images",
    "verify": "check the bytes of a functaset",
    "encode": "encode pictures with a trained field",
    "decode": "decode latents of a functaset to PNG files at any resolution",
    "sample": "draw new images from a trained generator",
    "inpaint": "fill in hidden parts of images, with the generator as prior",
    "analyse": "measure a trained field: inner steps, quantization, resolution, latent space",
    "export": "write generated and real images of a run for other programs",
    "plan": "estimate what the stages of a config cost on other hardware",
    "explore": "serve a local page to explore a run",
}
DESCRIPTION = """Turns images into functions: neural fields with a small grid of latents per image.
`functa COMMAND --help` has examples."""
_USER_ERRNOS = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EEXIST),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `functa COMMAND ...`.

    Returns:
      Exit status: 0 done, 1 failed, 2 something the user must fix, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    completed = os.environ.get("COMP_LINE", "").split()[1:]  # set when a shell asks for completions
    name = next(iter(completed or arguments), "")
    parser = argparse.ArgumentParser(prog="functa", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, help_line in COMMANDS.items():
        if command == name:
            module = importlib.import_module(f"functa.cli.{name}")
            own = commands.add_parser(
                name,
                help=help_line,
                description=module.DESCRIPTION,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            module.add_arguments(own)
        else:
            commands.add_parser(command, help=help_line)
    argcomplete.autocomplete(parser)
    similar = difflib.get_close_matches(name, COMMANDS, n=1)
    if similar and name not in COMMANDS:
        parser.error(f"unknown command {name!r}; did you mean {similar[0]}?")
    args, unknown = parser.parse_known_args(arguments)
    overrides = [flag for flag in unknown if re.match(r"--config\.[\w.]+=", flag)]
    if unknown and not (getattr(module, "CONFIG_OVERRIDES", False) and overrides == unknown):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.config_overrides = overrides
    use_compilation_cache()
    try:
        return module.run(args)
    except UserError as error:
        return _fail(name, str(error), status=2)
    except StorageUnavailableError as error:
        return _fail(name, str(error), status=1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(name, str(error), status=2 if error.errno in _USER_ERRNOS else 1)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", status=130)


def _fail(command: str, message: str, *, status: int) -> int:
    print(f"functa {command}: {message}", file=sys.stderr)
    return status
