"""Start and end of the processes of a run.

JAX detects the processes of Slurm steps, TPU pods and Open MPI. All other launchers, such as
launch/local.sh, set three environment variables.
"""

import collections
import contextlib
import glob
import importlib.util
import json
import logging
import os
import queue
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from orbax.checkpoint import multihost

from functa.runtime import processes
from functa.runtime.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process without heartbeats for this time is dead, and JAX ends the other processes. Networks of
# clusters may be down for seconds; on one machine nothing is lost but processes.
_HEARTBEAT_SECONDS, _LOCAL_HEARTBEAT_SECONDS = 60, 10
_LOCAL_HOSTS = ("127.0.0.1", "localhost")
_START_SECONDS = 300
_START_WARNING_SECONDS = 10.0
# Interval at which a process looks for exits of other processes, and the time for which an exiting
# process waits until the others have seen its exit.
_POLL_SECONDS = 1.0
_EXIT_SECONDS = 6.0
# Shorter than the time without heartbeats, after which JAX aborts with a message that does not name a process.
_SILENCE_SECONDS = 5.0
_EXIT_KEYS = "functa/exit"

_exiting = threading.Event()
_log = logging.getLogger("functa")


def initialize() -> None:
    """Connects to the other processes of this run, if any. Must precede any other use of JAX.

    A process that cannot reach the first one within five minutes is aborted by JAX (status 134).

    Raises:
      UserError: the environment variables are inconsistent, or processes have unequal numbers of
        devices.
      ConnectionError: the processes did not connect; the same command may succeed.
    """
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not variables and not _jax_detects_processes():
        return
    arguments = _initialize_arguments(variables) if variables else {}
    host = arguments.get("coordinator_address", "").rpartition(":")[0]
    heartbeat = _LOCAL_HEARTBEAT_SECONDS if host in _LOCAL_HOSTS else _HEARTBEAT_SECONDS
    warning = threading.Timer(
        _START_WARNING_SECONDS,
        _log.warning,
        ("waiting at most %d s for the other processes: %s", _START_SECONDS, variables or "(JAX)"),
    )
    warning.daemon = True
    warning.start()
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=_START_SECONDS,
            shutdown_timeout_seconds=2 * heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"the processes of this run cannot connect: {str(error).splitlines()[0]}"
        ) from error
    finally:
        warning.cancel()
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        devices = (f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise UserError(f"all processes must have the same number of devices: {', '.join(devices)}")
    threading.Thread(target=_exit_with_others, name="exits of processes", daemon=True).start()


def _initialize_arguments(variables: dict[str, str]) -> dict:
    """Arguments of jax.distributed.initialize from environment variables."""
    missing = [name for name in VARIABLES if name not in variables]
    if missing:
        raise UserError(
            f"{', '.join(variables)} is set, but {', '.join(missing)} is not: set all three or none"
        )
    address, count, index = (variables[name] for name in VARIABLES)
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"{VARIABLES[0]}={address} must be HOST:PORT")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"{VARIABLES[1]}={count} and {VARIABLES[2]}={index} must be whole numbers, the second "
            "smaller than the first"
        )
    arguments = {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }
    if host in _LOCAL_HOSTS:  # not reachable from other machines
        arguments["coordinator_bind_address"] = f"127.0.0.1:{port}"
    return arguments


def _jax_detects_processes() -> bool:
    """Whether a launcher that JAX knows has started this process beside others."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    has_tpu = bool(_tpu_device_files()) and importlib.util.find_spec("libtpu") is not None
    # Pods of one TPU slice on GKE. If JAX does not find the TPU, it must fail here: otherwise each
    # pod would run on its own in the same run directory.
    pods = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    return has_tpu or "," in pods or (tasks.isdecimal() and int(tasks) > 1)


def _tpu_device_files() -> list[str]:
    """Device files of TPU chips. VFIO numbers them by IOMMU group, not from 0."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def error_summary(error: Exception) -> str:
    """One line on an error that ends a run of several processes."""
    line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        if "Timed out waiting" in line:  # Gloo, if the other process is alive
            return f"another process did not reach this operation; see its own log ({line})"
        return f"another process died or is unreachable, or the device failed ({line})"
    return line


def complete() -> None:
    """Waits until all processes have reached the end of the run."""
    processes.barrier("end")
    _exiting.set()


def announce_exit(status: int, reason: str) -> None:
    """Makes all other processes exit with the same status. `exit_process` must follow."""
    if processes.is_distributed():
        _exiting.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            key = f"{_EXIT_KEYS}/{jax.process_index()}"
            _key_value_store().key_value_set(key, json.dumps([status, reason]))


def exit_process(status: int) -> NoReturn:
    """Exits after the other processes have seen the exit that this one announced.

    A normal exit waits for all processes at a barrier, which a dead process never reaches.
    """
    if _exiting.is_set():
        deadline = time.monotonic() + _EXIT_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < deadline:
                exits = _key_value_store().key_value_dir_get(_EXIT_KEYS)
                if len(exits) == jax.process_count():
                    break
                time.sleep(0.1)
            if jax.process_index() == 0:
                # The store ends with process 0, and JAX aborts processes that still read from it.
                time.sleep(_POLL_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_with_others() -> None:
    """Ends this process after another one has announced its exit.

    On accelerators nothing else would: a collective may wait forever for a process that failed.
    """
    polls: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_poll_exits, args=(polls,), name="exit keys", daemon=True).start()
    while not _exiting.is_set():
        try:
            exits = polls.get(timeout=_SILENCE_SECONDS)
        except queue.Empty:
            if _exiting.is_set():
                return
            if jax.process_index() == 0:  # the store is local, so this process is only busy
                continue
            _log.warning(
                "process 0 has not answered for %.0f s: it has ended, is busy or is unreachable",
                _SILENCE_SECONDS,
            )
            exits = polls.get()
        # If this process met the same problem, it gets the time to report it itself.
        if not exits or _exiting.wait(_POLL_SECONDS):
            continue
        key, value = min(exits)
        status, reason = json.loads(value)
        index = key.rpartition("/")[2]
        _log.error(
            "functa: %s: exits because process %s has ended: %s",
            processes.process_name(),
            index,
            reason,
        )
        announce_exit(status, f"exit of process {index}")
        exit_process(status)


def _poll_exits(polls: queue.SimpleQueue) -> None:
    """Puts the announced exits into a queue. It hangs while process 0 is unreachable."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while not _exiting.wait(_POLL_SECONDS):
            polls.put(_key_value_store().key_value_dir_get(_EXIT_KEYS))


def _key_value_store() -> Any:
    """JAX's key-value store, which process 0 serves to all."""
    return multihost.get_jax_distributed_client()
