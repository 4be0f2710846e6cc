"""`functa run`: runs the stages of a config. Also what `python -m functa.main` does."""

import argparse
import contextlib
import errno
import os
import pathlib
import sys
import traceback

from ml_collections import ConfigDict

from functa.runtime.compilation_cache import use_compilation_cache
from functa.runtime.errors import UserError
from functa.runtime.memory import keep_freed_memory

CONFIG_OVERRIDES = True
DESCRIPTION = """Runs the stages of a config, and writes report.html.

    functa run digits
    functa run cifar10_spatial:8x8x16,nearest,two_core --config.data.data_dir=data
    functa run digits:tiny --workdir=runs/try --config.field.width=32 --config.stages=meta_learn,encode

A config is the name of a file in functa/configs, or the path of a file. After the colon follow the
options of that file. Any value can be set by --config.a.b=VALUE. The same command resumes a stopped
run, and skips complete stages.
"""

# Errors of the operating system that the user can fix.
_USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="NAME[:OPTIONS]")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/NAME")


def run(args: argparse.Namespace) -> int:
    from functa.pipeline.config_files import load_config

    return run_config(load_config(args.config, args.config_overrides), args.workdir)


def run_config(config: ConfigDict, workdir: str | None) -> int:
    """Runs the stages of a config on this process; see functa/main.py.

    Args:
      workdir: directory of the run; None: runs/NAME.
    Returns:
      Exit status: 0 done, or stopped by SIGTERM with everything saved (then FUNCTA_STOPPED_STATUS
      if it is set); 1 failed; 2 the user must fix the config, the data or the disk.
    Raises:
      UserError: an environment variable is wrong.
    """
    stopped = _environment_number("FUNCTA_STOPPED_STATUS", default=0, least=0, greatest=255)
    if os.environ.get("JAX_NUM_CPU_DEVICES") != "-1":  # JAX's own default
        _environment_number("JAX_NUM_CPU_DEVICES", default=1, least=1, greatest=1 << 20)
    workdir = workdir or str(pathlib.Path("runs") / config.name)
    keep_freed_memory()
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # at INFO Orbax logs every step of every save
    use_compilation_cache(workdir)
    from functa.runtime import distributed, processes

    try:
        status = _run_stages(config, workdir, stopped_status=stopped)
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


def _environment_number(name: str, *, default: int, least: int, greatest: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isdecimal() and least <= int(text) <= greatest):
        raise UserError(f"{name}={text} must be an integer from {least} to {greatest}")
    return int(text)


def _run_stages(config: ConfigDict, workdir: str, *, stopped_status: int) -> int:
    import jax

    from functa.pipeline import runner
    from functa.pipeline.run import Run
    from functa.report import metric_registry, report
    from functa.runtime import distributed, errors, platforms
    from functa.training.progress import Console

    try:
        platforms.require_libraries()
        distributed.initialize()
        platforms.start_platform()
        with contextlib.closing(Console()) as say:
            summary = runner.run_stages(Run(config, workdir, say=say))
        if jax.process_index() == 0:
            metric_registry.write_summary(workdir)
            print(metric_registry.results_table(summary))
            print(f"report: {report.write_report(workdir)}")
        distributed.complete()
    except errors.UserError as error:
        return _fail(2, f"cannot run {config.name}:\n{error}")
    except (errors.StorageUnavailableError, ConnectionError) as error:
        return _fail(1, str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        return _fail(2, f"{error} (--workdir={workdir})")
    except (FloatingPointError, platforms.AcceleratorError) as error:
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
