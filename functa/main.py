"""python -m functa.main --config=configs/NAME.py[:options] [--workdir=DIR] [--config.a.b=value ...]

Flags only; the stages are in pipeline.py. Exit status: 0 done, or stopped by SIGTERM with
everything saved (then FUNCTA_STOPPED_STATUS where it is set, by which launchers know that there is
more to do); 1 a training run went wrong; 2 something in the command, the config, the data or the
disk must be mended first.
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

_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment: configs/NAME.py[:options].", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/NAME by default.")


def main(argv: list[str]) -> int:
    del argv  # flags only
    if _CONFIG.value is None:
        return cli_errors.refuse(
            "functa", "--config=configs/NAME.py is needed; see configs/ for the names"
        )
    stopped = os.environ.get("FUNCTA_STOPPED_STATUS") or "0"
    if not (stopped.isdecimal() and int(stopped) < 256):
        return cli_errors.refuse(
            "functa", f"FUNCTA_STOPPED_STATUS={stopped}: want an exit status, 0 to 255"
        )
    devices = os.environ.get("JAX_NUM_CPU_DEVICES") or "1"
    if not (devices.lstrip("-").isdecimal() and (int(devices) >= 1 or int(devices) == -1)):
        return cli_errors.refuse("functa", f"JAX_NUM_CPU_DEVICES={devices}: want a number from 1")
    config = _CONFIG.value
    workdir = _WORKDIR.value or str(Path("runs") / config.name)

    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save
    keep_freed_memory()
    import jax

    _use_compilation_cache(jax)
    from functa.runtime import processes as distributed

    try:
        status = _run(config, workdir, stopped=int(stopped))
    except Exception as error:
        if not distributed.several():
            raise
        traceback.print_exc()
        line = f"{distributed.this_process()}: {distributed.cause(error)}"
        print(f"functa: {line}", file=sys.stderr)
        distributed.announce(1, line)
        status = 1
    if status in (1, 2) and distributed.several():
        distributed.end(status)
    return status


def _run(config: ConfigDict, workdir: str, *, stopped: int) -> int:
    import jax

    from functa.pipeline import runner
    from functa.report import report
    from functa.runtime import processes as distributed
    from functa.runtime.errors import (
        DataError,
        InputTimeoutError,
        StopRequested,
        StorageUnavailableError,
        UserError,
    )

    try:
        distributed.start()
        summary = runner.run_stages(config, workdir, say=lambda line: print(line, flush=True))
        if jax.process_index() == 0:
            report.write_summary(workdir)
            print(report.results_table(summary))
            print(f"report: {report.write_report(workdir)}")
        distributed.finish()
    except (UserError, DataError) as error:
        return _failed(2, f"cannot run {config.name}:\n{error}")
    except StorageUnavailableError as error:
        return _failed(1, str(error))
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        return _failed(2, f"{error} (at work in {workdir})")
    except FloatingPointError as error:
        return _failed(1, str(error))
    except InputTimeoutError as error:
        # The usual way out would wait for the thread that reads.
        distributed.end(_failed(1, str(error)))
    except StopRequested as stop:
        print(f"functa: {stop}; the same command goes on from there", flush=True)
        distributed.finish()
        return stopped
    return 0


def _failed(status: int, line: str) -> int:
    from functa.runtime import processes as distributed

    process = f"{distributed.this_process()}: " if distributed.several() else ""
    print(f"functa: {process}{line}", file=sys.stderr)
    distributed.announce(status, line)
    return status


def _use_compilation_cache(jax) -> None:
    """A second run of the same program starts in seconds; JAX_COMPILATION_CACHE_DIR moves the cache."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "functa" / "xla"))


if __name__ == "__main__":
    app.run(main, flags_parser=cli_errors.parser("functa", _CONFIG))
