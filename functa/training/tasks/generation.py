"""The generate stage: trains a diffusion model on the latents of a functaset.

Source: Karras et al. 2022 and rectified flow, see functa/diffusion/parameterization.py; on functa,
Dupont et al. 2022, section 5.3, and Bauer et al. 2023, section 4.2.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.data.functaset.batches import CACHES, COPIES
from functa.data.functaset.format import float32_latents
from functa.diffusion import parameterization
from functa.diffusion.generator import Generator, init_network
from functa.diffusion.guidance import MAX_SCALE, make_guidance
from functa.diffusion.schedules import make_schedule
from functa.diffusion.solvers import make_solver
from functa.models import classifier, normalization
from functa.models.denoiser import make_denoiser
from functa.runtime import rng
from functa.runtime.config import range_errors
from functa.training import optimizers
from functa.training.tasks import Illustrations, PyTree

_DASHBOARD_SAMPLES = 16
_EVAL_NOISE_LEVELS = 8


def validate(
    settings: ConfigDict, *, latent_shape: tuple[int, int, int], num_classes: int
) -> list[str]:
    """Problems of config.generate, one line each."""
    problems: list[str] = []

    def init_shapes() -> None:
        network = make_denoiser(num_classes=num_classes, **settings.model)
        jax.eval_shape(lambda key: init_network(network, latent_shape, key), jax.random.key(0))

    parts: dict[str, Callable[[], Any]] = {
        "model": init_shapes,
        "parameterization": lambda: parameterization.make_parameterization(
            **settings.parameterization
        ),
        "schedule": lambda: make_schedule(**settings.schedule),
        "solver": lambda: make_solver(**settings.solver),
        "guidance": lambda: make_guidance(**settings.guidance),
    }
    for part, make in parts.items():
        try:
            make()
        except (TypeError, ValueError, flax.errors.FlaxError) as error:
            problems.append(f"generate.{part}: {error}")
    try:
        make_optimizer(settings)
    except (TypeError, ValueError) as error:
        problems += str(error).replace("optimizer.", "generate.optimizer.").splitlines()
    for key, choices in (
        ("normalization", normalization.KINDS),
        ("cache", CACHES),
        ("copies", COPIES),
    ):
        if settings[key] not in choices:
            problems.append(f"generate.{key}={settings[key]!r} must be one of {', '.join(choices)}")
    return (
        problems
        + _guidance_problems(settings)
        + range_errors(
            {
                "generate.label_dropout": (settings.label_dropout, 0.0, 1.0),
                "generate.sample_batch_size": (settings.sample_batch_size, 1, 10**6),
            }
        )
    )


def _guidance_problems(settings: ConfigDict) -> list[str]:
    """Errors of the guidance sweep, and guidance without label dropout."""
    sweep = tuple(settings.guidance_sweep)
    is_number = [isinstance(scale, int | float) for scale in sweep]
    if not all(is_number) or len(set(sweep)) < len(sweep):
        return [f"generate.guidance_sweep={sweep!r} must be a tuple of different numbers"]
    scales = {f"generate.guidance_sweep[{k}]": scale for k, scale in enumerate(sweep)}
    problems = range_errors({key: (scale, 0.0, MAX_SCALE) for key, scale in scales.items()})
    scales["generate.guidance.scale"] = settings.guidance.scale
    return problems + [
        f"{key}={scale:g} needs a generator that knows images of unknown class: set "
        "generate.label_dropout above 0, or the scale to 1"
        for key, scale in scales.items()
        if scale != 1 and settings.label_dropout == 0
    ]


def make_optimizer(settings: ConfigDict) -> optimizers.Optimizer:
    return optimizers.make(
        **settings.optimizer, steps=settings.steps, decay_mask=classifier.decay_mask
    )


def make_sample_inputs(generator: Generator) -> Callable[[Any, jax.Array], Any]:
    """Returns `Task.sample_inputs`: (batch, key) -> (normalized latents, NoisyBatch)."""

    def sample_inputs(batch: Any, key: jax.Array) -> Any:
        latents = generator.normalization.normalize(float32_latents(batch))
        return latents, parameterization.sample_noise_and_labels(
            generator.parameterization,
            key,
            latents,
            batch["label"],
            null_class=generator.null_class,
            label_dropout=generator.label_dropout,
        )

    return sample_inputs


def make_loss(
    generator: Generator,
) -> Callable[[PyTree, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns `Task.loss`: the mean of `parameterization.losses`."""

    def loss(params: PyTree, inputs: Any):
        network = generator.bind(params)
        return jnp.mean(parameterization.losses(generator.parameterization, network, *inputs)), {}

    return loss


def make_evaluate(generator: Generator) -> Callable[[PyTree, Any], dict[str, jax.Array]]:
    """Returns evaluate(params, batch) -> rows [b]: loss, and zero_baseline_loss, the loss of a
    network whose output is zero.

    Both are means over noise levels from the training distribution. Noise and levels depend on the
    position in the batch and are the same in every evaluation. Labels are not dropped.
    """

    def evaluate(params: PyTree, batch: Any) -> dict[str, jax.Array]:
        latents = generator.normalization.normalize(float32_latents(batch))
        networks = (generator.bind(params), lambda inputs, *_: jnp.zeros_like(inputs))

        def losses_at_level(key):
            noisy_batch = parameterization.sample_noise_and_labels(
                generator.parameterization,
                key,
                latents,
                batch["label"],
                null_class=0,
                label_dropout=0.0,
            )
            return tuple(
                parameterization.losses(generator.parameterization, network, latents, noisy_batch)
                for network in networks
            )

        keys = jax.random.split(rng.stream_key(0, "noise"), _EVAL_NOISE_LEVELS)
        losses, zero_baseline_losses = jax.lax.map(losses_at_level, keys)
        return {
            "loss": jnp.mean(losses, axis=0),
            "zero_baseline_loss": jnp.mean(zero_baseline_losses, axis=0),
        }

    return evaluate


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a split.

    Returns:
      r2: fraction of the target's variance that the network explains, at most 1; denoising_loss.
    """
    loss, baseline = (
        float(np.mean(rows[name], dtype=np.float64)) for name in ("loss", "zero_baseline_loss")
    )
    return {"r2": 1 - loss / baseline, "denoising_loss": loss}


def make_illustrate(
    generator: Generator, decode: Callable[[np.ndarray], np.ndarray], *, seed: int
) -> Callable[[PyTree], Illustrations]:
    """Returns `Task.illustrate`: the first 16 samples, of all classes in turn."""
    numbers = jnp.arange(_DASHBOARD_SAMPLES)
    key = rng.stream_key(seed, "sample")
    sample = jax.jit(generator.sample)

    def illustrate(params: PyTree) -> Illustrations:
        samples = sample(params, key, numbers, numbers % generator.num_classes)
        latents = np.asarray(samples.latents)
        images = np.clip(decode(latents), 0, 1)
        return Illustrations(images={"samples": images}, histograms={"sampled_latents": latents})

    return illustrate
