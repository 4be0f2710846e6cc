"""The environment of a run: versions, devices, processor and commit."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import jax

from functa.runtime import memory
from functa.runtime.mesh import device_name

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "numpy"),
    *("tensorflow-datasets", "clu", "ml_collections"),
)


def environment() -> dict[str, Any]:
    """Contents of environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "memory_gib": round(memory.host_bytes() / 2**30, 1),
        "devices": device_name(),
        "processes": jax.process_count(),
        "commit": _commit(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    """Model of the processor and number of usable cores."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {memory.usable_cores()} cores"


def _commit() -> str:
    """`git describe` of the source tree, if it is a git checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown (not a git checkout)"
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"unknown ({error})"
    return result.stdout.strip() or "unknown (git describe failed)"
