"""The cache of compiled programs, which later commands reuse."""

import os
import pathlib


def cache_directory() -> pathlib.Path:
    """Directory of files that can be made again: functa below XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    return pathlib.Path(home) / "functa"


def use_compilation_cache() -> None:
    """Caches compiled programs in the cache directory, unless JAX_COMPILATION_CACHE_DIR is set."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
