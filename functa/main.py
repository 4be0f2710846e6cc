"""Runs the stages of a config: python -m functa.main --config=configs/NAME.py[:options] [--workdir=DIR]

Any value of the config can be set by --config.a.b=VALUE. The same command resumes a stopped run.
`functa run` does the same; launchers use this module.

Exit status: 0 done; 1 failed; 2 the user must fix the command, the config, the data or the disk first.
If SIGTERM stops the run, it saves everything first, and the status is FUNCTA_STOPPED_STATUS (default: 0).
Launchers set that variable to learn that the run is not complete.
"""

from absl import app, flags
from ml_collections import config_flags

from functa.cli.run import run_config
from functa.runtime import cli_errors
from functa.runtime.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config of the run: configs/NAME.py[:options].", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; default: runs/NAME.")


def main(argv: list[str]) -> int:
    del argv  # all arguments are flags
    if _CONFIG.value is None:
        return cli_errors.report_user_error(
            "functa", "--config=configs/NAME.py[:options] is required"
        )
    try:
        return run_config(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        return cli_errors.report_user_error("functa", str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=cli_errors.flags_parser("functa", _CONFIG))
