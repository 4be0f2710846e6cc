"""Random keys by purpose: a key is a function of (seed, named stream, step) and of nothing else.

Every process computes the same keys; noise that belongs to an example is indexed by its position
in the global batch, so the number of processes and devices never changes a result.
"""

import jax

# The number of a stream is for ever: another one is another data order and other augmentations.
STREAMS = {"init": 0, "noise": 2, "augment": 4, "order": 5, "sample": 6}


def stream_key(seed: int, stream: str) -> jax.Array:
    """Key of a named stream.

    Raises:
      KeyError: `stream` is not one of STREAMS.
    """
    return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])


def stream_seed(seed: int, *path: int | str) -> tuple[int, ...]:
    """Entropy for numpy.random.default_rng from a seed and a path such as ("augment", id, copy)."""
    return (seed, *(STREAMS[part] if isinstance(part, str) else part for part in path))
