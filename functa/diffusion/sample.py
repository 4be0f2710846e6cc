"""What can be done with a generator: draw samples, watch one come about, lead from one to another, keep them.

All functions take the config beside the generator: the run's, with other settings of sampling.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset import manifest as functaset_manifest
from functa.data.functaset import writer as functaset_writer
from functa.data.functaset.format import RecordLayout, float32_latents
from functa.diffusion import interpolation, sharded_sampling, solvers
from functa.pipeline.load import Generator
from functa.runtime import rng
from functa.training.tasks import generation

_PER_SHARD = 10_000
_COMPRESSION = "none"


def draw(
    generator: Generator, config: ConfigDict, *, numbers: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Latents [n, i, j, d] float32 of samples.

    They are always drawn config.generate.sample_batch_size at a time: sample n of a seed and a class has
    the same bits whatever is drawn beside it.

    Args:
      numbers: [n] int32, which samples; labels: [n] int32, num_classes for any.
    """
    sampler = generation.make_sampler(config, generator.normalization)
    return _in_blocks(
        lambda *inputs: sampler(*inputs).latents, generator, config, numbers, labels, axis=0
    )


def trajectory(
    generator: Generator, config: ConfigDict, *, numbers: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """What is expected behind the noise at the beginning of each step: latents [steps, n, i, j, d]."""
    sampler = generation.make_sampler(config, generator.normalization, keep_trajectory=True)
    return _in_blocks(
        lambda *inputs: sampler(*inputs).trajectory, generator, config, numbers, labels, axis=1
    )


def _in_blocks(
    draw: sharded_sampling.Sampler,
    generator: Generator,
    config: ConfigDict,
    numbers: np.ndarray,
    labels: np.ndarray,
    *,
    axis: int,
) -> np.ndarray:
    """What is drawn, config.generate.sample_batch_size samples at a time, which `axis` numbers."""
    compiled = jax.jit(draw)
    block, parts = config.generate.sample_batch_size, []
    for start in range(0, len(numbers), block):
        rows = np.minimum(np.arange(start, start + block), len(numbers) - 1)
        drawn = np.asarray(compiled(generator.params, numbers[rows], labels[rows]))
        parts.append(drawn.take(range(min(block, len(numbers) - start)), axis))
    return np.concatenate(parts, axis)


def encoded_pair(generator: Generator, indices: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Latents [2, i, j, d] float32 and labels [2] int32 of two test images, in this order.

    Raises:
      ValueError: one is not there.
    """
    there = generator.functaset.num_examples("test")
    if max(indices) >= there:
        raise ValueError(f"the test images are 0 to {there - 1}, not {max(indices)}")
    records = generator.functaset.source("test", cache="none").read(np.asarray(indices))
    return np.asarray(float32_latents(records)), records["label"]


def first_noise(config: ConfigDict, *, seed: int, numbers: np.ndarray) -> jax.Array:
    """Noisy latents [n, i, j, d] that samples of a seed begin with; numbers [n] int32."""
    key, latent_shape = rng.stream_key(seed, "sample"), tuple(config.field.latent_shape)
    noise = solvers.noise(key, numbers=jnp.asarray(numbers), step=0, latent_shape=latent_shape)
    return _schedule(config)[0] * noise


def make_noise_of(generator: Generator, config: ConfigDict) -> Callable[..., jax.Array]:
    """(params, latents [n, i, j, d] float32 as the functaset holds them, labels [n]) -> the noisy latents that
    samples would begin with to become them; compiled."""

    @jax.jit
    def noise_of(params: Any, latents: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = generation.guided(config, generation.make_denoise(config, params))
        clean = generator.normalization.normalize(latents)
        return interpolation.noise_of(denoise, _schedule(config), clean, labels)

    return noise_of


def make_strip(generator: Generator, config: ConfigDict, *, count: int) -> Callable[..., jax.Array]:
    """(params, interpolation.Ends) -> latents [count, i, j, d] from end to end, both included; compiled."""

    @jax.jit
    def strip(params: Any, ends: interpolation.Ends) -> jax.Array:
        denoise = generation.guided(config, generation.make_denoise(config, params))
        solver = solvers.make_solver(**config.generate.solver)
        drawn = interpolation.between(denoise, solver, _schedule(config), ends, count=count)
        return generator.normalization.restore(drawn)

    return strip


def strip_of_samples(
    generator: Generator,
    config: ConfigDict,
    *,
    numbers: np.ndarray,
    labels: np.ndarray,
    count: int,
) -> np.ndarray:
    """Latents [count, i, j, d] from one sample to another, both included: numbers and labels are [2] int32."""
    strip = make_strip(generator, config, count=count)
    noisy = first_noise(config, seed=config.seed, numbers=numbers)
    return np.asarray(strip(generator.params, interpolation.Ends(noisy, jnp.asarray(labels))))


def strip_of_latents(
    generator: Generator,
    config: ConfigDict,
    *,
    latents: np.ndarray,
    labels: np.ndarray,
    count: int,
) -> np.ndarray:
    """Latents [count, i, j, d] from latents[0] to latents[1], [2, i, j, d] float32, both included but for the
    errors of the two ways through the noise; labels [2] int32."""
    noisy = make_noise_of(generator, config)(generator.params, latents, labels)
    strip = make_strip(generator, config, count=count)
    return np.asarray(strip(generator.params, interpolation.Ends(noisy, jnp.asarray(labels))))


def _schedule(config: ConfigDict) -> np.ndarray:
    return solvers.make_schedule(**config.generate.schedule)


def write_functaset(
    directory: epath.Path,
    generator: Generator,
    *,
    latents: np.ndarray,
    labels: np.ndarray,
    told: dict[str, Any],
) -> None:
    """Writes samples as a functaset of the generator's field and dtype, all in the split train.

    Their psnr is 0: they were fitted to no image.

    Args:
      directory: must not be there.
      labels: [n] integers, -1 for none.
      told: JSON values, stored as `sampled` in the manifest's config.
    """
    manifest, count = generator.functaset.manifest, len(latents)
    encoded = {**manifest.config.get("encode", {}), "num_augmentations": 1}
    spec = functaset_writer.FunctasetSpec(
        field_digest=manifest.field_digest,
        config=manifest.config | {"encode": encoded, "sampled": told},
        layout=RecordLayout(latent_shape=latents.shape[1:], dtype=manifest.dtype),
        compression=_COMPRESSION,
        class_names=tuple(manifest.class_names),
        num_records={"train": count, "validation": 0, "test": 0},
        records_per_shard=_PER_SHARD,
    )
    directory.mkdir(parents=True)
    for shard in spec.shards:
        own = slice(shard.start, shard.stop)
        with functaset_writer.LatentShardWriter(directory, shard=shard, spec=spec) as writer:
            writer.write(
                latents=latents[own],
                label=labels[own],
                id=np.arange(shard.start, shard.stop),
                copy=np.zeros(shard.num_records, np.int32),
                psnr=np.zeros(shard.num_records, np.float32),
            )
            writer.finish(seconds=0.0)
    functaset_manifest.write_manifest(directory, spec)
