"""Runs the stages of a config: python -m functa.main --config=configs/NAME.py[:options] [--workdir=DIR]

Any value of the config can be set by --config.a.b=VALUE. The same command resumes a stopped run.

Exit status: 0 done, or stopped by SIGTERM with everything saved (then FUNCTA_STOPPED_STATUS if it is set,
which tells launchers that there is more to do); 1 failed; 2 the user must fix the command, the config,
the data or the disk first.
"""

import errno
import os
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from functa.runtime import cli_errors
from functa.runtime.memory import keep_freed_memory

# Errors of the operating system that the user can fix.
_USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)

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
    stopped = os.environ.get("FUNCTA_STOPPED_STATUS") or "0"
    if not (stopped.isdecimal() and int(stopped) < 256):
        return cli_errors.report_user_error(
            "functa", f"FUNCTA_STOPPED_STATUS={stopped} must be an exit status from 0 to 255"
        )
    devices = os.environ.get("JAX_NUM_CPU_DEVICES") or "1"
    if not (devices.lstrip("-").isdecimal() and (int(devices) >= 1 or int(devices) == -1)):
        return cli_errors.report_user_error(
            "functa", f"JAX_NUM_CPU_DEVICES={devices} must be at least 1"
        )
    config = _CONFIG.value
    workdir = _WORKDIR.value or str(Path("runs") / config.name)

    logging.set_verbosity(logging.WARNING)  # at INFO Orbax logs every step of every save
    keep_freed_memory()
    import jax

    _use_compilation_cache(jax)
    from functa.runtime import distributed, processes

    try:
        status = _run(config, workdir, stopped_status=int(stopped))
    except Exception as error:
        if not processes.is_distributed():
            raise
        traceback.print_exc()
        line = f"{processes.process_name()}: {distributed.error_summary(error)}"
        print(f"functa: {line}", file=sys.stderr)
        distributed.announce_exit(1, line)
        status = 1
    if status in (1, 2) and processes.is_distributed():
        distributed.exit_process(status)
    return status


def _run(config: ConfigDict, workdir: str, *, stopped_status: int) -> int:
    import jax

    from functa.pipeline import runner
    from functa.report import metric_registry, report
    from functa.runtime import distributed, errors

    try:
        distributed.initialize()
        summary = runner.run_stages(config, workdir, say=lambda line: print(line, flush=True))
        if jax.process_index() == 0:
            metric_registry.write_summary(workdir)
            print(metric_registry.results_table(summary))
            print(f"report: {report.write_report(workdir)}")
        distributed.complete()
    except errors.UserError as error:
        return _fail(2, f"cannot run {config.name}:\n{error}")
    except errors.StorageUnavailableError as error:
        return _fail(1, str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        return _fail(2, f"{error} (--workdir={workdir})")
    except FloatingPointError as error:
        return _fail(1, str(error))
    except errors.InputTimeoutError as error:
        # A normal exit would wait for the thread that is still reading.
        distributed.exit_process(_fail(1, str(error)))
    except errors.StopRequested as stop:
        print(f"functa: {stop}; the same command resumes the run", flush=True)
        distributed.complete()
        return stopped_status
    return 0


def _fail(status: int, line: str) -> int:
    from functa.runtime import distributed, processes

    process = f"{processes.process_name()}: " if processes.is_distributed() else ""
    print(f"functa: {process}{line}", file=sys.stderr)
    distributed.announce_exit(status, line)
    return status


def _use_compilation_cache(jax) -> None:
    """Caches compiled programs below XDG_CACHE_HOME, unless JAX_COMPILATION_CACHE_DIR is set."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "functa" / "xla"))


if __name__ == "__main__":
    app.run(main, flags_parser=cli_errors.flags_parser("functa", _CONFIG))
