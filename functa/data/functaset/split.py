"""A split of a functaset as a sequence of examples, for programs that train on latents."""

from collections.abc import Iterator

import numpy as np

from functa.data import loader
from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.data.sources import Batch


class FunctasetSplit:
    """Random access to the examples of a split, and batches of them.

        split = FunctasetSplit(functaset, "train")
        split[0]["latents"]                      # float32 [i, j, d]
        split[:100]["label"]                     # int32 [100]
        for batch in split.batches(128, seed=0): ...

    An example has the arrays
        latents  float32 [i, j, d]
        label    int32, -1 if the class is not known
        id       int64, index of the image in its split
        copy     int32, number of the augmented copy; 0 is the image itself
        psnr     float32, in dB, of the fit before the latents were quantized
    """

    def __init__(self, functaset: Functaset, name: str):
        self._source = functaset.source(name)
        self.name = name
        self.latent_shape = tuple(functaset.manifest.latent_shape)

    def __len__(self) -> int:
        return self._source.num_examples

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.latent_shape))
        return f"FunctasetSplit({self.name}: {len(self):,} examples of {shape})"

    def __getitem__(self, index: int | slice | np.ndarray) -> Batch:
        """Reads one example, or a batch of examples for a slice or an array of indices.

        Raises:
          IndexError: an index is out of range.
        """
        rows = np.arange(len(self))[index]
        batch = self._read(np.atleast_1d(rows))
        return {name: values[0] for name, values in batch.items()} if rows.ndim == 0 else batch

    def batches(
        self, batch_size: int, *, seed: int | None = None, epochs: int = 1, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Iterates over batches of `batch_size` examples.

        Args:
          seed: of the order, which is a new permutation in every epoch; None: the stored order.
          epochs: passes over the split.
          drop_last: whether to leave out the last batch of an epoch if it is smaller.
        Raises:
          ValueError: `batch_size` or `epochs` is below 1.
        """
        if batch_size < 1 or epochs < 1:
            raise ValueError(f"batch_size={batch_size} and epochs={epochs} must be at least 1")
        stop = len(self) - len(self) % batch_size if drop_last else len(self)
        starts = ((epoch, start) for epoch in range(epochs) for start in range(0, stop, batch_size))
        return (self._batch(epoch, start, batch_size, seed) for epoch, start in starts)

    def _batch(self, epoch: int, start: int, batch_size: int, seed: int | None) -> Batch:
        rows = np.arange(start, min(start + batch_size, len(self)), dtype=np.int64)
        if seed is not None:
            rows = loader.shuffled_examples(
                rows + epoch * len(self), num_examples=len(self), seed=seed
            )
        return self._read(rows)

    def _read(self, rows: np.ndarray) -> Batch:
        records = self._source.read(rows)
        names = ("label", "id", "copy", "psnr")
        return {"latents": np.asarray(float32_latents(records))} | {
            name: records[name] for name in names
        }


class FunctasetSplits(dict[str, FunctasetSplit]):
    """Splits of a functaset by name."""

    def __missing__(self, name: str) -> FunctasetSplit:
        raise ValueError(f"no split {name!r}; there are {', '.join(self)}")
