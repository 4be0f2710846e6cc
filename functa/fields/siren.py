"""SIREN: networks of sine layers, modulated per example.

The function is that of the papers, sin(w0 (W' h + b' + s')) per layer. The stored parameters differ
by scale, so that an optimizer step changes phases by the same number of radians for every w0. In the
usual parameterization hidden weights shrink as 1 / w0, Adam's steps do not, and a step of the first
layer is multiplied by w0; training at w0 = 30 diverges. Here weights of sine layers, biases and
modulations are stored multiplied by w0, in radians. The output layer is stored as if w0 were 10; at
its usual scale of 1 / w0 it must first grow to the scale of images, which takes longer for larger w0.
So w0 sets only the initial frequencies of the first layer.

Source: Sitzmann et al. 2020, section 3.2 (initialization); Dupont et al. 2022, section 3.1
  (modulations).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]

# pi as a sum of three floats. Products of the first with integers below 2^12 are exact.
_PI = (np.float32(3.140625), np.float32(9.67502593994140625e-4), np.float32(1.50995799097e-7))
_INVERSE_PI = np.float32(1 / np.pi)
# Minimax polynomials on [-pi/2, pi/2]: sin(r) = r + r^3 P(r^2), error 5e-9; cos(r) = 1 + r^2 Q(r^2),
# error 3e-10.
_SINE = (
    -0.16666657096352683,
    0.008333017288634325,
    -0.00019806615026536937,
    2.6000544378094667e-06,
)
_COSINE = (
    -0.49999999549550855,
    0.04166664072784781,
    -0.00138884035058789,
    2.4761886143288836e-05,
    -2.607710369445515e-07,
)

OUTPUT_SCALE = np.float32(0.1)  # factor of the stored output weights


def _reduce(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Range reduction x = k pi + r with |r| <= pi / 2. Returns (r, (-1)^k)."""
    k = jnp.round(x * _INVERSE_PI)
    r = ((x - k * _PI[0]) - k * _PI[1]) - k * _PI[2]
    odd = k - 2 * jnp.floor(0.5 * k)
    return r, 1 - 2 * odd


def _polynomial(coefficients: tuple[float, ...], t: jax.Array) -> jax.Array:
    value = jnp.full_like(t, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * t + coefficient
    return value


@jax.custom_jvp
def sine(x: jax.Array) -> jax.Array:
    """sin(x) for float32 x, with absolute error below 2e-7 for |x| <= 60.

    Ten times as fast as jnp.sin on a CPU.
    """
    r, sign = _reduce(x)
    t = r * r
    return sign * (r + r * t * _polynomial(_SINE, t))


@jax.custom_jvp
def cosine(x: jax.Array) -> jax.Array:
    """cos(x), with the accuracy of `sine`. XLA fuses the two and shares their range reduction."""
    r, sign = _reduce(x)
    t = r * r
    return sign * (1 + t * _polynomial(_COSINE, t))


@sine.defjvp
def _sine_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return sine(x), cosine(x) * dx


@cosine.defjvp
def _cosine_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return cosine(x), -sine(x) * dx


def init(key: jax.Array, *, inputs: int, outputs: int, width: int, depth: int, w0: float) -> Params:
    """Initial parameters of `depth` linear layers.

    Returns:
      {"weights": [[inputs, width], [width, width] ..., [width, outputs]], "biases": [[width], ...,
      [outputs]]}, float32. Weights of the first layer are U(+-w0 / inputs), all others
      U(+-sqrt(6 / width)). Biases of sine layers are U(+-pi), so that features start as sines and
      cosines alike (deviation: the papers use zero or U(+-1 / sqrt(inputs))). The output bias is zero.
    """
    sizes = [inputs] + [width] * (depth - 1) + [outputs]
    weights, biases = [], []
    for layer, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, layer))
        bound = w0 / fan_in if layer == 0 else (6 / fan_in) ** 0.5
        weights.append(
            jax.random.uniform(weight_key, (fan_in, fan_out), minval=-bound, maxval=bound)
        )
        phase = np.pi if layer < depth - 1 else 0.0
        biases.append(jax.random.uniform(bias_key, (fan_out,), minval=-phase, maxval=phase))
    return {"weights": weights, "biases": biases}


def apply(
    params: Params,
    inputs: jax.Array,
    shifts: list[jax.Array],
    scales: list[jax.Array] | None,
) -> jax.Array:
    """Evaluates the network at points.

    Args:
      inputs: [..., n, f] features. Without a batch axis the first matrix product is shared by all
        examples.
      shifts: one array per sine layer, in radians, broadcast against [..., n, width].
      scales: like `shifts`; phases are multiplied by 1 + scale before the shift. None: no scales.
    Returns:
      [..., n, outputs] float32, W h / 10 + b + 0.5.
    """
    *hidden, (last_weight, last_bias) = zip(params["weights"], params["biases"], strict=True)
    h = inputs
    with jax.numpy_rank_promotion("allow"):
        for layer, (weight, bias) in enumerate(hidden):
            phase = h @ weight + bias
            if scales is not None:
                phase = phase * (1 + scales[layer])
            h = sine(phase + shifts[layer])
        return h @ (last_weight * OUTPUT_SCALE) + last_bias + 0.5
