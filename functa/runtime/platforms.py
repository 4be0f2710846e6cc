"""Refuses a run that was asked to use TPUs or GPUs and cannot."""

import ctypes
import importlib.util
import os

import jax

from functa.runtime.errors import UserError

_PLUGINS = {
    "tpu": (("libtpu",), "install functa with the extra tpu"),
    "cuda": (
        ("jax_cuda13_plugin", "jax_cuda12_plugin"),
        "install functa with the extra cuda13, or cuda12 for drivers before 580",
    ),
}


class AcceleratorError(RuntimeError):
    """An accelerator does not start although its libraries are installed. The same command may succeed."""


def require_libraries() -> None:
    """Checks the libraries of the platform that JAX_PLATFORMS names first; does not start JAX.

    JAX falls back to the CPU if the variable is not set, so the launchers set it.

    Raises:
      UserError: a library or the driver of the platform is missing.
    """
    requested = os.environ.get("JAX_PLATFORMS", "")
    name = {"gpu": "cuda"}.get(requested.split(",")[0], requested.split(",")[0])
    if name not in _PLUGINS:
        return
    packages, advice = _PLUGINS[name]
    if not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(f"JAX_PLATFORMS={requested}: {packages[0]} is not installed: {advice}")
    if name == "cuda" and not _has_driver():
        raise UserError(
            f"JAX_PLATFORMS={requested}: the NVIDIA driver (libcuda.so.1) is not installed on this machine"
        )


def start_platform() -> None:
    """Starts the devices of this process, after the processes are connected.

    Raises:
      AcceleratorError: they do not start, for example because another program uses them.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise AcceleratorError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no device starts: {line}"
        ) from error


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
