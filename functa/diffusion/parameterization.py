"""Diffusion of latents: what a denoiser is trained on, and how its output is read.

There is one noise level, sigma, and one way to noise: latents + sigma * noise, the noise standard normal and the
latents normalised (standard deviation one). A frame adds what papers differ in: how sigma is drawn, what the
network sees, what it has to say, and how its errors are weighted.

Flow matching is such a frame, exactly: its x_t = (1 - t) latents + t noise is noisy latents / (1 + sigma) with
sigma = t / (1 - t). As log sigma = logit t, a logit-normal t is a log-normal sigma, a uniform t is a logistic
log sigma, and a timestep shift by alpha (Esser et al. 2024, section 5.3.2) adds log alpha to log sigma.

What a network has to say is a mixture p latents + q noise, p and q functions of sigma. Latents follow from it by
elimination of the noise, and with equal errors of the mixture those of the latents are sigma / (p sigma - q)
as large. Written so, nothing cancels at any sigma.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from functa.runtime.config import range_errors

Level = Callable[[jax.Array], jax.Array]  # sigma [b] -> a number an example [b]
# (inputs [b, i, j, d], condition [b], labels [b] int32) -> [b, i, j, d]
Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (noisy latents [b, i, j, d], sigma [b], labels [b] int32) -> the expected latents [b, i, j, d]
Denoise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

# The frame's loss in units of another prediction can be unbounded: with "x" in "flow" it is 1 / t^2, where Li and
# He 2025 (arXiv 2511.13720) clip the denominator at 0.05.
LARGEST_WEIGHT = 400.0


class Prediction(NamedTuple):
    """The network says of_latents(sigma) * latents + of_noise(sigma) * noise."""

    of_latents: Level
    of_noise: Level


def _radius(sigma: jax.Array) -> jax.Array:
    return jnp.sqrt(1 + jnp.square(sigma))


# "edm" is c_skip and c_out of Karras et al. 2022, table 1, for latents of standard deviation one; Salimans and Ho's
# "v" (2022, section 4) is then the same with the other sign. "velocity" is dx_t / dt of flow matching.
PREDICTIONS = {
    "edm": Prediction(lambda s: s / _radius(s), lambda s: -1 / _radius(s)),
    "v": Prediction(lambda s: -s / _radius(s), lambda s: 1 / _radius(s)),
    "x": Prediction(jnp.ones_like, jnp.zeros_like),
    "epsilon": Prediction(jnp.zeros_like, jnp.ones_like),
    "velocity": Prediction(lambda s: -jnp.ones_like(s), jnp.ones_like),
}


class _Kind(NamedTuple):
    """input_scale and condition: as in Frame; own: the prediction whose errors count equally at
    every sigma."""

    input_scale: Level
    condition: Level
    own: str


FRAMES = {
    "edm": _Kind(lambda s: 1 / _radius(s), lambda s: jnp.log(s) / 4, "edm"),
    "flow": _Kind(lambda s: 1 / (1 + s), lambda s: s / (1 + s), "velocity"),
}
DISTRIBUTIONS = {"normal": jax.random.normal, "logistic": jax.random.logistic}


class Frame(NamedTuple):
    """What the loss and `make_denoise` need to know.

    Attributes:
      draw_sigma: (key, count) -> sigma [count] float32 > 0, for training.
      input_scale: c_in, noisy latents times it are the network's input: of variance one in "edm", x_t in "flow".
      condition: c_noise, what the network is told of sigma: log(sigma) / 4 in "edm", t in [0, 1] in "flow".
      prediction: what the network has to say.
      weight: of the squared error of what it says, at most LARGEST_WEIGHT.
    """

    draw_sigma: Callable[[jax.Array, int], jax.Array]
    input_scale: Level
    condition: Level
    prediction: Prediction
    weight: Level


def make_frame(*, name: str, prediction: str, distribution: str, mean: float, std: float) -> Frame:
    """The frame "edm" or "flow".

    Args:
      prediction: a key of PREDICTIONS; "edm" in EDM, "velocity" in rectified flow. Another one changes what the
        network says, not how errors of the latents are weighted: that is the frame's, up to LARGEST_WEIGHT.
      distribution: of (log(sigma) - mean) / std in training: "normal" (Karras et al. 2022 with mean -1.2, std
        1.2; Esser et al. 2024 with mean 0, std 1) or "logistic" (with mean 0, std 1, t is uniform in (0, 1)).
    Raises:
      ValueError: unknown names or impossible values; the message lists all of them.
    Source: Karras et al. 2022, table 1; Liu et al. 2022, equation 1; Lipman et al. 2022, section 4.1.
    """
    choices: list[tuple[str, str, Collection[str]]] = [
        ("name", name, FRAMES),
        ("prediction", prediction, PREDICTIONS),
        ("distribution", distribution, DISTRIBUTIONS),
    ]
    problems = [
        f"{key}={value!r}: known are {', '.join(known)}"
        for key, value, known in choices
        if value not in known
    ]
    problems += range_errors({"mean": (mean, -10.0, 10.0), "std": (std, 1e-3, 10.0)})
    if problems:
        raise ValueError("the frame of diffusion cannot be built: " + "; ".join(problems))
    kind, said = FRAMES[name], PREDICTIONS[prediction]
    own = PREDICTIONS[kind.own]
    draw = DISTRIBUTIONS[distribution]

    def draw_sigma(key: jax.Array, count: int) -> jax.Array:
        return jnp.exp(mean + std * draw(key, (count,), jnp.float32))

    def weight(sigma: jax.Array) -> jax.Array:
        ratio = jnp.square(_divisor(own, sigma) / _divisor(said, sigma))
        return jnp.minimum(ratio, LARGEST_WEIGHT)

    return Frame(draw_sigma, kind.input_scale, kind.condition, said, weight)


def _divisor(prediction: Prediction, sigma: jax.Array) -> jax.Array:
    """p sigma - q, never zero: p and q have opposite signs."""
    return prediction.of_latents(sigma) * sigma - prediction.of_noise(sigma)


def _column(level: jax.Array) -> jax.Array:
    """[b] -> [b, 1, 1, 1]."""
    return level[:, None, None, None]


class Draw(NamedTuple):
    """All that is random in a loss: sigma [b], noise [b, i, j, d] float32; labels [b] int32, some of
    them replaced by the null class."""

    sigma: jax.Array
    noise: jax.Array
    labels: jax.Array


def draw(
    frame: Frame,
    key: jax.Array,
    latents: jax.Array,
    labels: jax.Array,
    *,
    null_class: int,
    label_dropout: float,
) -> Draw:
    """Noise, its levels and the labels that are kept, by position in the batch.

    Args:
      latents: [b, i, j, d] float32, for their shape; labels: [b] int32.
      null_class: the label that means "of any class".
      label_dropout: the fraction of labels replaced by it, so that a denoiser can be guided.
    Source: Ho and Salimans 2022, algorithm 1.
    """
    sigma_key, noise_key, label_key = jax.random.split(key, 3)
    dropped = jax.random.bernoulli(label_key, label_dropout, labels.shape)
    return Draw(
        frame.draw_sigma(sigma_key, len(latents)),
        jax.random.normal(noise_key, latents.shape, jnp.float32),
        jnp.where(dropped, jnp.int32(null_class), labels),
    )


def add_noise(latents: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """latents + sigma * noise: [b, i, j, d] from arrays of that shape and sigma [b]."""
    return latents + _column(sigma) * noise


def losses(frame: Frame, network: Network, latents: jax.Array, drawn: Draw) -> jax.Array:
    """The loss of each example [b]: the weighted mean squared error of what the network says.

    Source: Karras et al. 2022, equation 8 (in "edm"); Liu et al. 2022, equation 1 (in "flow").
    """
    sigma, noise, labels = drawn
    noisy = add_noise(latents, noise, sigma)
    said = network(_column(frame.input_scale(sigma)) * noisy, frame.condition(sigma), labels)
    of_latents, of_noise = frame.prediction
    target = _column(of_latents(sigma)) * latents + _column(of_noise(sigma)) * noise
    return frame.weight(sigma) * jnp.mean(jnp.square(said - target), axis=(1, 2, 3))


def make_denoise(frame: Frame, network: Network) -> Denoise:
    """The network as a function from noisy latents to the latents expected behind them.

    denoise(noisy [b, i, j, d], sigma [b] > 0, labels [b]) -> [b, i, j, d]: all that samplers know.
    """

    def denoise(noisy: jax.Array, sigma: jax.Array, labels: jax.Array) -> jax.Array:
        said = network(_column(frame.input_scale(sigma)) * noisy, frame.condition(sigma), labels)
        of_noise = frame.prediction.of_noise(sigma)
        # said = p latents + q noise and noise = (noisy - latents) / sigma, solved for the latents.
        scaled = _column(sigma) * said - _column(of_noise) * noisy
        return scaled / _column(_divisor(frame.prediction, sigma))

    return denoise


def velocity(noisy: jax.Array, denoised: jax.Array, sigma: jax.Array) -> jax.Array:
    """d noisy / d sigma of the probability flow: the noise that the denoiser sees in `noisy`.

    Args:
      sigma: a scalar, or [b, 1, 1, 1]. With x_t and t in the place of noisy latents and sigma it is
        d x_t / d t of rectified flow.
    Source: Karras et al. 2022, equations 1 and 3.
    """
    return (noisy - denoised) / sigma
