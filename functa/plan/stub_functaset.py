"""A functaset that is not there: enough of one to make the tasks that would train on it, and their programs."""

from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset import format
from functa.data.functaset.reader import Functaset, Manifest

_RECORDS = 64  # of every split; no program depends on how many


class _Noise:
    """Latents of standard normal numbers."""

    def __init__(self, latent_shape: tuple[int, ...]):
        self.num_examples, self._shape = _RECORDS, latent_shape

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        latents = rng.standard_normal((len(indices), *self._shape), np.float32)
        return {"latents": latents, "label": np.zeros(len(indices), np.int32)}


class Described(Functaset):
    """Holds no records; what measures them is given noise."""

    def source(self, split: str, cache: str) -> Any:
        return _Noise(tuple(self.manifest.latent_shape))


def functaset(config: ConfigDict) -> Functaset:
    """The functaset that the stage encode of this config would make; its latents have mean 0 and deviation 1."""
    channels = config.field.latent_shape[2]
    return Described(
        path=epath.Path("nowhere"),
        manifest=Manifest(
            format_version=format.FORMAT_VERSION,
            digest="",
            field_digest="",
            config={"encode": {"num_augmentations": config.encode.num_augmentations}},
            latent_shape=list(config.field.latent_shape),
            dtype=config.encode.dtype,
            class_names=[],
            splits={split: {"examples": _RECORDS, "shards": []} for split in format.SPLITS},
            mean=[0.0] * channels,
            std=[1.0] * channels,
            scalar_mean=0.0,
            scalar_std=1.0,
            files={},
        ),
    )
