"""The cache of compiled programs, which later commands reuse."""

import os
import pathlib


def use_compilation_cache() -> None:
    """Caches compiled programs below XDG_CACHE_HOME, unless JAX_COMPILATION_CACHE_DIR is set."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    import jax

    home = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "functa" / "xla"))
