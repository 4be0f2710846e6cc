"""Random keys by purpose: a key is a function of (seed, named stream, step) and of nothing else.

Every process computes the same keys; noise that belongs to an example is indexed by its position
in the global batch, so the number of processes and devices never changes a result.
"""

import jax

STREAMS = ("init", "subset", "noise", "dropout", "augment", "order", "split")


def stream_key(seed: int, stream: str) -> jax.Array:
    """Key of a named stream.

    Raises:
      ValueError: `stream` is not one of STREAMS.
    """
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))


def stream_seed(seed: int, *path: int | str) -> tuple[int, ...]:
    """Entropy for numpy.random.default_rng from a seed and a path such as ("augment", id, copy)."""
    return (seed, *(STREAMS.index(part) if isinstance(part, str) else part for part in path))
