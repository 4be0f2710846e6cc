"""The processes of one run: how they find each other, what they agree on, and how they end.

JAX's own runtime is the engine. Slurm steps, TPU pods and Open MPI are found by JAX itself; anything else
says it by three environment variables, as launch/local.sh does.
"""

import collections
import contextlib
import glob
import importlib.util
import json
import logging
import os
import pathlib
import queue
import sys
import threading
import time
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from functa.data.functaset.format import json_digest
from functa.runtime.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process that has not been heard of for so long is dead, and the others end.
HEARTBEAT_SECONDS = 10
START_SECONDS = 300
WAIT_SECONDS = 1800  # that processes may differ in what they do alone
# How often a process looks whether another has announced its end, and how long that one stays to be heard.
_LISTEN_SECONDS = 1.0
_LINGER_SECONDS = 6.0
# Below HEARTBEAT_SECONDS, after which JAX aborts this process with a message that names nobody.
_SILENCE_SECONDS = 5.0
_TELL_SECONDS = 10.0  # before it is told that others are waited for
_ENDED = "functa/ended"

_ending = threading.Event()
_log = logging.getLogger("functa")


def start() -> None:
    """Joins the other processes of this run where the environment tells of any; must come before any other
    use of JAX.

    Raises:
      UserError: the environment contradicts itself, or the others were not found in START_SECONDS.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    arguments: dict = {}
    if given:
        arguments = _explicit(given)
    elif not _cluster():
        return
    waiting = threading.Timer(
        _TELL_SECONDS,
        _log.warning,
        (
            "waiting for the other processes, for %d s at most: %s",
            START_SECONDS,
            given or "as JAX finds them",
        ),
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=START_SECONDS,
            shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run do not find each other: {str(error).splitlines()[0]}"
        ) from error
    finally:
        waiting.cancel()
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise UserError(
            "all processes must have as many devices; there are "
            + ", ".join(f"{count} in process {index}" for index, count in sorted(counts.items()))
        )
    threading.Thread(target=_listen, name="other processes", daemon=True).start()


def _explicit(given: dict[str, str]) -> dict:
    """Arguments of jax.distributed.initialize."""
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise UserError(
            f"{', '.join(given)} is set, but {', '.join(missing)} is not: set all three, or none"
        )
    address, count, index = (given[name] for name in VARIABLES)
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"{VARIABLES[0]}={address}: want HOST:PORT")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"{VARIABLES[1]}={count}, {VARIABLES[2]}={index}: want whole numbers, the second below the first"
        )
    arguments = {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }
    if host in ("127.0.0.1", "localhost"):  # nobody else is to reach it
        arguments["coordinator_bind_address"] = f"127.0.0.1:{port}"
    return arguments


def _cluster() -> bool:
    """Whether this process was started beside others by something that JAX finds by itself."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    tpu = bool(_tpu_devices()) and importlib.util.find_spec("libtpu") is not None
    # Pods of one TPU slice on GKE. Should JAX not see the TPU, the error must come at once: each alone
    # would take the others' work directory for its own.
    pods = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    return tpu or "," in pods or (tasks.isdecimal() and int(tasks) > 1)


def _tpu_devices() -> list[str]:
    """Device files of TPU chips; those of vfio are numbered by the machine's groups, not from 0."""
    return glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")


def several() -> bool:
    """Whether this process runs beside others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def this_process() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def cause(error: Exception) -> str:
    """One line for an error that ends a run of several processes."""
    line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        # Gloo, of a process that is there and does not come.
        if "Timed out waiting" in line:
            return f"another process has not come to this point; its own log tells why ({line})"
        return f"another process has died or cannot be reached, or the device failed ({line})"
    return line


def wait(name: str, seconds: float = WAIT_SECONDS) -> None:
    """Returns when all processes have come here; every process must, with the same name.

    Raises:
      RuntimeError: one did not come in time, or is dead.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=int(1000 * seconds))


def gather(text: str, name: str) -> list[str]:
    """The texts of all processes, in their order; every process must call it, with the same name.

    They wait for each other for WAIT_SECONDS, longer than a collective does.
    """
    if jax.process_count() == 1:
        return [text]
    wait(name)
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def agree(told: dict[str, Any], problems: list[str]) -> list[str]:
    """What all processes find, so that all refuse or none does.

    Args:
      told: JSON values that must be the same everywhere: versions, code, config.
      problems: what this process found.
    Returns:
      the problems of process 0, those that only another process has, and every entry of `told` in
      which one differs from process 0.
    """
    texts = gather(json.dumps([told, problems]), "agree")
    (first, found), *others = map(json.loads, texts)
    for process, (theirs, more) in enumerate(others, start=1):
        found += [f"process {process}: {problem}" for problem in more if problem not in found]
        found += [
            f"{name} is {theirs.get(name, '(absent)')} in process {process}, but "
            f"{first.get(name, '(absent)')} in process 0"
            for name in sorted(first.keys() | theirs.keys())
            if first.get(name) != theirs.get(name)
        ]
    return found


def finish() -> None:
    """Returns when all processes have come to the end of the run."""
    wait("end")
    _ending.set()


def announce(status: int, line: str) -> None:
    """Tells the other processes that this one is about to `end`, and why; they end with the same status."""
    if several():
        _ending.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            key = f"{_ENDED}/{jax.process_index()}"
            _store().key_value_set(key, json.dumps([status, line]))


def _listen() -> None:
    """Ends this process once another has announced its end.

    On accelerators nothing else would: who waits in a collective for a process that has failed may wait
    for ever.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(answers,), name="store", daemon=True).start()
    while not _ending.is_set():
        try:
            ended = answers.get(timeout=_SILENCE_SECONDS)
        except queue.Empty:
            if _ending.is_set():
                return
            if jax.process_index() == 0:
                # Its own answer: it is busy.
                continue
            _log.warning(
                "process 0 has not answered for %.0f s: it is gone or busy, or the network to it is cut",
                _SILENCE_SECONDS,
            )
            ended = answers.get()
        # All may have met the same, and each is to tell it itself.
        if not ended or _ending.wait(_LISTEN_SECONDS):
            continue
        key, text = min(ended)
        status, line = json.loads(text)
        process = key.rpartition("/")[2]
        _log.error(
            "functa: %s: ends because process %s has ended: %s", this_process(), process, line
        )
        announce(status, "has been told so")
        end(status)


def _ask(answers: queue.SimpleQueue) -> None:
    """Puts what processes have announced; while there is no way to process 0 it hangs."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while not _ending.wait(_LISTEN_SECONDS):
            answers.put(_store().key_value_dir_get(_ENDED))


def _store() -> Any:
    """What all processes read and write: JAX's own, kept by process 0."""
    return multihost.get_jax_distributed_client()


def end(status: int) -> NoReturn:
    """Ends this process, as soon as the others know of what it has announced.

    The usual way out waits for all processes at a barrier, which a dead or a failed one never reaches.
    """
    if _ending.is_set():
        until = time.monotonic() + _LINGER_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while time.monotonic() < until:
                if len(_store().key_value_dir_get(_ENDED)) == jax.process_count():
                    break
                time.sleep(0.1)
            if jax.process_index() == 0:
                # What they read goes with it, and JAX would abort those that still do.
                time.sleep(_LISTEN_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def source_digest() -> str:
    """Names the code that runs: of all modules of the package."""
    root = pathlib.Path(__file__).parent.parent
    files = sorted(root.rglob("*.py"))
    return json_digest({str(file.relative_to(root)): file.read_text() for file in files})
