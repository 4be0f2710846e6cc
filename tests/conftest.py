"""What every test runs under: four simulated CPU devices, strict dtypes and ranks, one compilation cache."""

import fcntl
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# All of this must be set before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
# Most of a run of all tests is compiling: without the compiler's optimisations it takes less than half
# as long. What is computed, and in which order, is the same program; a person's own value counts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# gcsfs would ask Google what kind of bucket the emulator's is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
# Tests and the programs they start compile the same things: one cache for the whole run, or a
# lasting one where the person has named it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="functa-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A shell has what it starts in the background ignore Ctrl-C, and so would programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def _allow_promotion(function):
    """`function`, run under JAX's usual dtype promotion."""

    def wrapped(*args):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return wrapped


# The one place where the optimisers themselves mix dtypes: 1 - decay**count with an integer count.
optax.tree.bias_correction = _allow_promotion(optax.tree.bias_correction)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real images that FUNCTA_TEST_DATA names."""
    folder = os.environ.get("FUNCTA_TEST_DATA")
    if not folder:
        pytest.skip("FUNCTA_TEST_DATA names no folder of real images")
    if not os.path.isdir(folder):
        pytest.fail(f"FUNCTA_TEST_DATA={folder} is not a folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def program_env() -> dict[str, str]:
    """Environment of a program started by a test: this source tree, one CPU device, the shared cache."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    del env["XLA_FLAGS"]
    return env


@pytest.fixture(scope="session")
def run_main(program_env):
    """Runs `python -m functa.main ARGUMENTS...` in the project's root and returns the
    CompletedProcess.

    `env` is added to program_env. Its text output is captured; a program that does not end within
    `timeout` seconds raises subprocess.TimeoutExpired.
    """

    def run(*arguments, env=None, timeout=300.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "functa.main", *map(str, arguments)],
            cwd=ROOT,
            env={**program_env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def finished(run_main, tmp_path_factory):
    """(directory, CompletedProcess) of a complete run of digits:tiny, for all tests: leave it as it is."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers: the first one makes the run, the others wait
    record = folder / "finished.pickle"
    with open(folder / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            workdir = folder / "finished"
            result = run_main("--config=configs/digits.py:tiny", f"--workdir={workdir}")
            assert result.returncode == 0, result.stderr
            assert "Warning" not in result.stderr
            record.write_bytes(pickle.dumps((workdir, result)))
    return pickle.loads(record.read_bytes())
