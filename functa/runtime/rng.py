"""Random keys: functions of a seed, a named stream and a step.

Every process computes the same keys. Noise of an example is indexed by its position in the global
batch, so that results do not depend on the number of processes and devices.
"""

from typing import Any

import jax
import numpy as np

# Changing the number of a stream changes results, for example the order of the data.
STREAMS = {"init": 0, "noise": 2, "augment": 4, "order": 5, "sample": 6}


def stream_key(seed: int, stream: str) -> jax.Array:
    """Random key of a named stream.

    Raises:
      KeyError: `stream` is not one of STREAMS.
    """
    return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])


def stream_seed(seed: int, *path: int | str) -> tuple[int, ...]:
    """Seed for numpy.random.default_rng from a path such as ("augment", id, copy)."""
    return (seed, *(STREAMS[part] if isinstance(part, str) else part for part in path))


def require_seed(seed: Any) -> None:
    """Raises ValueError if `seed` is not an integer in [0, 2^32), which jax.random.key truncates to."""
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 1 << 32):
        raise ValueError(f"seed={seed!r} must be an integer from 0 to 2^32 - 1")
