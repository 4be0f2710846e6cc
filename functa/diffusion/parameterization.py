"""Noise parameterizations: training targets, loss weights and the denoiser that a network defines.

There is one noise level, sigma, and one forward process: latents + sigma * noise, with standard
normal noise and normalized latents (standard deviation one). A parameterization adds what papers
choose differently: the training distribution of sigma, the network's inputs, its target, and the
weight of its error.

Rectified flow is one of them, exactly: its x_t = (1 - t) latents + t noise is the noisy latents
divided by (1 + sigma), with sigma = t / (1 - t). Because log sigma = logit t, a logit-normal t is a
log-normal sigma, a uniform t is a logistic log sigma, and a timestep shift by alpha (Esser et al.
2024, section 5.3.2) adds log alpha to log sigma.

A network predicts a mixture p latents + q noise, where p and q are functions of sigma. Eliminating
the noise gives the latents, and an error of the mixture is an error of the latents multiplied by
(p sigma - q) / sigma. In this form nothing cancels at any sigma.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from functa.runtime.config import range_errors

SigmaFunction = Callable[[jax.Array], jax.Array]  # sigma [b] -> [b]
# (inputs [b, i, j, d], condition [b], labels [b] int32) -> [b, i, j, d]
Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (noisy latents [b, i, j, d], sigma [b], labels [b] int32) -> E[latents | noisy latents]
Denoiser = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# The weight of one parameterization in units of another prediction is unbounded: for "x" in "flow"
# it is 1 / t^2. Li and He 2025 (arXiv 2511.13720) clip the denominator at 0.05.
MAX_WEIGHT = 400.0


class Prediction(NamedTuple):
    """The network's target: latents_scale(sigma) * latents + noise_scale(sigma) * noise."""

    latents_scale: SigmaFunction
    noise_scale: SigmaFunction


def _noisy_std(sigma: jax.Array) -> jax.Array:
    return jnp.sqrt(1 + jnp.square(sigma))


# "edm" is c_skip and c_out of Karras et al. 2022, table 1, for latents of standard deviation one;
# "v" (Salimans and Ho 2022, section 4) is its negative. "velocity" is dx_t / dt of rectified flow.
PREDICTIONS = {
    "edm": Prediction(lambda s: s / _noisy_std(s), lambda s: -1 / _noisy_std(s)),
    "v": Prediction(lambda s: -s / _noisy_std(s), lambda s: 1 / _noisy_std(s)),
    "x": Prediction(jnp.ones_like, jnp.zeros_like),
    "epsilon": Prediction(jnp.zeros_like, jnp.ones_like),
    "velocity": Prediction(lambda s: -jnp.ones_like(s), jnp.ones_like),
}


class _Preconditioning(NamedTuple):
    """input_scale, condition: see Parameterization. unit_weight_prediction: the key of PREDICTIONS
    whose error has weight one at every sigma."""

    input_scale: SigmaFunction
    condition: SigmaFunction
    unit_weight_prediction: str


PARAMETERIZATIONS = {
    "edm": _Preconditioning(lambda s: 1 / _noisy_std(s), lambda s: jnp.log(s) / 4, "edm"),
    "flow": _Preconditioning(lambda s: 1 / (1 + s), lambda s: s / (1 + s), "velocity"),
}
DISTRIBUTIONS = {"normal": jax.random.normal, "logistic": jax.random.logistic}


class Parameterization(NamedTuple):
    """Functions that define the loss and the denoiser of a network.

    Attributes:
      sample_sigma: (key, count) -> sigma [count] float32 > 0, the training distribution.
      input_scale: c_in, the factor between noisy latents and the network's input. The input has
        variance one in "edm" and is x_t in "flow".
      condition: c_noise, the network's second input: log(sigma) / 4 in "edm", t in "flow".
      prediction: the network's target.
      weight: factor of the squared error of the prediction, at most MAX_WEIGHT.
    """

    sample_sigma: Callable[[jax.Array, int], jax.Array]
    input_scale: SigmaFunction
    condition: SigmaFunction
    prediction: Prediction
    weight: SigmaFunction


def make_parameterization(
    *, name: str, prediction: str, distribution: str, mean: float, std: float
) -> Parameterization:
    """Returns the parameterization "edm" or "flow".

    Args:
      prediction: a key of PREDICTIONS; "edm" in EDM, "velocity" in rectified flow. Another key
        changes the network's target, but not the weight of the latents' errors, up to MAX_WEIGHT.
      distribution: of (log(sigma) - mean) / std in training. "normal" is Karras et al. 2022 with
        mean -1.2 and std 1.2, and Esser et al. 2024 with mean 0 and std 1. "logistic" with mean 0
        and std 1 makes t uniform in (0, 1).
    Raises:
      ValueError: unknown names or values out of range; the message lists all of them.
    Source: Karras et al. 2022, table 1; Liu et al. 2022, equation 1; Lipman et al. 2022, section 4.1.
    """
    choices: list[tuple[str, str, Collection[str]]] = [
        ("name", name, PARAMETERIZATIONS),
        ("prediction", prediction, PREDICTIONS),
        ("distribution", distribution, DISTRIBUTIONS),
    ]
    errors = [
        f"{key}={value!r} must be one of {', '.join(known)}"
        for key, value, known in choices
        if value not in known
    ]
    errors += range_errors({"mean": (mean, -10.0, 10.0), "std": (std, 1e-3, 10.0)})
    if errors:
        raise ValueError("; ".join(errors))
    input_scale, condition, unit_weight_prediction = PARAMETERIZATIONS[name]
    target, unit_weight_target = PREDICTIONS[prediction], PREDICTIONS[unit_weight_prediction]

    def sample_sigma(key: jax.Array, count: int) -> jax.Array:
        return jnp.exp(mean + std * DISTRIBUTIONS[distribution](key, (count,), jnp.float32))

    def weight(sigma: jax.Array) -> jax.Array:
        ratio = _latents_divisor(unit_weight_target, sigma) / _latents_divisor(target, sigma)
        return jnp.minimum(jnp.square(ratio), MAX_WEIGHT)

    return Parameterization(sample_sigma, input_scale, condition, target, weight)


def _latents_divisor(prediction: Prediction, sigma: jax.Array) -> jax.Array:
    """p sigma - q. It is never zero, because p and q have opposite signs."""
    return prediction.latents_scale(sigma) * sigma - prediction.noise_scale(sigma)


def _per_example(values: jax.Array) -> jax.Array:
    """[b] -> [b, 1, 1, 1]."""
    return values[:, None, None, None]


class NoisyBatch(NamedTuple):
    """Random part of a training batch: sigma [b] float32, noise [b, i, j, d] float32, and labels
    [b] int32, some of them replaced by the null class."""

    sigma: jax.Array
    noise: jax.Array
    labels: jax.Array


def sample_noise_and_labels(
    parameterization: Parameterization,
    key: jax.Array,
    latents: jax.Array,
    labels: jax.Array,
    *,
    null_class: int,
    label_dropout: float,
) -> NoisyBatch:
    """Samples noise, noise levels and dropped labels, each by position in the batch.

    Args:
      latents: [b, i, j, d] float32; only the shape is used.
      labels: [b] int32.
      null_class: the label that stands for an unknown class.
      label_dropout: probability that a label is replaced by null_class (classifier-free guidance).
    Source: Ho and Salimans 2022, algorithm 1.
    """
    sigma_key, noise_key, label_key = jax.random.split(key, 3)
    is_dropped = jax.random.bernoulli(label_key, label_dropout, labels.shape)
    return NoisyBatch(
        parameterization.sample_sigma(sigma_key, len(latents)),
        jax.random.normal(noise_key, latents.shape, jnp.float32),
        jnp.where(is_dropped, jnp.int32(null_class), labels),
    )


def add_noise(latents: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """latents + sigma * noise, for arrays [b, i, j, d] and sigma [b]."""
    return latents + _per_example(sigma) * noise


def _predict(
    parameterization: Parameterization,
    network: Network,
    noisy: jax.Array,
    sigma: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    inputs = _per_example(parameterization.input_scale(sigma)) * noisy
    return network(inputs, parameterization.condition(sigma), labels)


def losses(
    parameterization: Parameterization, network: Network, latents: jax.Array, batch: NoisyBatch
) -> jax.Array:
    """Weighted mean squared error of the network's prediction for each example: [b].

    Source: Karras et al. 2022, equation 8 ("edm"); Liu et al. 2022, equation 1 ("flow").
    """
    sigma, noise, labels = batch
    noisy = add_noise(latents, noise, sigma)
    output = _predict(parameterization, network, noisy, sigma, labels)
    latents_scale, noise_scale = parameterization.prediction
    target = _per_example(latents_scale(sigma)) * latents + _per_example(noise_scale(sigma)) * noise
    error = jnp.mean(jnp.square(output - target), axis=(1, 2, 3))
    return parameterization.weight(sigma) * error


def make_denoiser(parameterization: Parameterization, network: Network) -> Denoiser:
    """Returns the denoiser (noisy [b, i, j, d], sigma [b] > 0, labels [b]) -> [b, i, j, d] that the
    network's prediction implies: the expected latents given the noisy ones."""

    def denoise(noisy: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
        output = _predict(parameterization, network, noisy, sigma, labels)
        prediction = parameterization.prediction
        # output = p latents + q noise with noise = (noisy - latents) / sigma, solved for latents
        scaled = _per_example(sigma) * output - _per_example(prediction.noise_scale(sigma)) * noisy
        return scaled / _per_example(_latents_divisor(prediction, sigma))

    return denoise


def velocity(noisy: jax.Array, denoised: jax.Array, sigma: jax.Array) -> jax.Array:
    """Slope d noisy / d sigma of the probability flow ODE: the noise estimate.

    Args:
      sigma: a scalar, or [b, 1, 1, 1]. With x_t and t in place of noisy latents and sigma, the
        result is d x_t / d t of rectified flow.
    Source: Karras et al. 2022, equations 1 and 3.
    """
    return (noisy - denoised) / sigma
