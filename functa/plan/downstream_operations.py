"""How many multiply-adds classifiers and denoisers of latents need, from the shapes of their layers.

Only matrix products and convolutions are counted, as in functa/operations.py: the nine shifted products of a
depthwise convolution are none. A training step takes three times the forward pass, since the pass back costs as
much for the activations and as much again for the weights, but for the first layers, which need the latter alone,
and for blocks that `remat` computes again, but for a last product that nothing on the way back depends on.
"""

import functools
from typing import Any

import numpy as np
from flax import linen as nn

from functa.diffusion import schedules, solvers
from functa.models import classifier, denoiser

LatentShape = tuple[int, int, int]
_FEATURES = 2 * len(denoiser.FREQUENCIES)  # of the noise level


@functools.singledispatch
def forward(module: nn.Module, latent_shape: LatentShape) -> int:
    """Multiply-adds of `module`, a classifier or a denoiser, on the latents [i, j, d] of one example."""
    raise TypeError(f"{type(module).__name__} is no model of latents")


def training(module: nn.Module, latent_shape: LatentShape) -> int:
    """Multiply-adds of one example in a training step."""
    again = recomputed(module, latent_shape) if getattr(module, "remat", False) else 0
    return 3 * forward(module, latent_shape) - _first_layers(module, latent_shape) + again


@functools.singledispatch
def recomputed(module: nn.Module, latent_shape: LatentShape) -> int:
    """Of `forward`, what is computed again on the way back where the module's `remat` is set."""
    raise TypeError(f"{type(module).__name__} keeps what it has computed")


def _first_layers(module: nn.Module, latent_shape: LatentShape) -> int:
    """Of `forward`, what is done with inputs that nothing is learned from: latents and noise level."""
    i, j, d = latent_shape
    pyramid = isinstance(module, classifier.ConvNext | denoiser.UNet)
    width = module.widths[0] if pyramid else module.width
    taps = 9 if isinstance(module, denoiser.UNet) else 1
    features = _FEATURES if type(module) in denoiser.DENOISERS.values() else 0
    return (taps * i * j * d + features) * width


def evaluations(
    *, schedule: dict[str, Any], solver: dict[str, Any], scale: float, interval: tuple[float, float]
) -> int:
    """How often a sample's denoiser is evaluated, guidance included: with it, twice inside its interval.

    Args:
      schedule, solver: of schedules.make_schedule and solvers.make_solver.
      scale, interval: of guidance.guide; any scale but 1 costs the same.
    """
    made = solvers.make_solver(**solver)
    sigmas = np.asarray(schedules.make_schedule(**schedule), np.float64)
    upper = sigmas[:-1] * (
        1 + made.churn(sigmas)
    )  # where each step begins, noise that is added included
    asked = np.concatenate([upper, sigmas[1:-1]]) if made.second_order else upper
    low, high = interval
    inside = int(np.sum((low <= asked) & (asked <= high))) if scale != 1 else 0
    return len(asked) + inside


def _attention(tokens: int, width: int) -> int:
    """Queries, keys, values and output; scores and their mixture."""
    return tokens * 4 * width**2 + 2 * tokens**2 * width


def _feed_forward(tokens: int, width: int, mlp_width: int) -> int:
    return tokens * 2 * width * mlp_width


@forward.register
def _(module: classifier.Mlp, latent_shape: LatentShape) -> int:
    i, j, d = latent_shape
    width = module.width
    return i * j * d * width + module.depth * 2 * width**2 + width * module.num_classes


@forward.register
def _(module: classifier.TransformerClassifier, latent_shape: LatentShape) -> int:
    i, j, d = latent_shape
    tokens, width = i * j // module.patch**2 + 1, module.width  # with CLS
    block = _attention(tokens, width) + _feed_forward(tokens, width, module.mlp_width)
    return i * j * d * width + module.depth * block + width * module.num_classes


@recomputed.register
def _(module: classifier.TransformerClassifier, latent_shape: LatentShape) -> int:
    i, j, _ = latent_shape
    tokens, width = i * j // module.patch**2 + 1, module.width
    return module.depth * (_attention(tokens, width) + tokens * width * module.mlp_width)


@recomputed.register
def _(module: classifier.ConvNext, latent_shape: LatentShape) -> int:
    i, j, _ = latent_shape
    total = 0
    for stage, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True)):
        if stage > 0:
            i, j = -(-i // 2), -(-j // 2)
        total += depth * i * j * width * 4 * width
    return total


@forward.register
def _(module: classifier.ConvNext, latent_shape: LatentShape) -> int:
    i, j, before = latent_shape
    total = 0
    for stage, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True)):
        taps = 1
        if stage > 0:
            i, j, taps = -(-i // 2), -(-j // 2), 4
        total += i * j * taps * before * width + depth * _feed_forward(i * j, width, 4 * width)
        before = width
    return total + before * module.num_classes


def _embedding(width: int) -> int:
    """Of the noise level; the class is looked up."""
    return _FEATURES * width + width**2


@forward.register
def _(module: denoiser.Dit, latent_shape: LatentShape) -> int:
    i, j, d = latent_shape
    width = module.width
    ends = 2 * i * j * d * width + 2 * width**2  # patches and output
    return _embedding(width) + ends + recomputed(module, latent_shape)


@recomputed.register
def _(module: denoiser.Dit, latent_shape: LatentShape) -> int:
    i, j, _ = latent_shape
    tokens, width = i * j // module.patch**2, module.width
    modulated = _attention(tokens, width) + _feed_forward(tokens, width, module.mlp_width)
    return module.depth * (modulated + 2 * 3 * width**2)


@forward.register
def _(module: denoiser.Mlp, latent_shape: LatentShape) -> int:
    i, j, d = latent_shape
    width = module.width
    block = _feed_forward(1, width, module.mlp_width) + 3 * width**2
    return _embedding(width) + 2 * i * j * d * width + module.depth * block + 2 * width**2


@forward.register
def _(module: denoiser.UNet, latent_shape: LatentShape) -> int:
    i, j, d = latent_shape
    first, widths = module.widths[0], module.widths
    total = _embedding(first) + 9 * i * j * 2 * d * first  # and the ends
    total += _bottom(module, latent_shape)
    for places, inputs, width in _blocks(module, latent_shape):
        shortcut = places * inputs * width if inputs != width else 0
        total += 9 * places * (inputs * width + width**2) + shortcut + 2 * first * width
    for level in range(1, len(widths)):  # halved and doubled
        total += 2 * (i >> level) * (j >> level) * 4 * widths[level - 1] * widths[level]
    return total


@recomputed.register
def _(module: denoiser.UNet, latent_shape: LatentShape) -> int:
    total = _bottom(module, latent_shape)
    for places, inputs, width in _blocks(module, latent_shape):
        total += 9 * places * inputs * width + 2 * module.widths[0] * width
    return total


def _bottom(module: denoiser.UNet, latent_shape: LatentShape) -> int:
    """The attention at the coarsest resolution, its modulations included."""
    i, j, _ = latent_shape
    level, last = len(module.widths) - 1, module.widths[-1]
    return _attention((i >> level) * (j >> level), last) + 3 * module.widths[0] * last


def _blocks(module: denoiser.UNet, latent_shape: LatentShape) -> list[tuple[int, int, int]]:
    """(places of the grid, channels in, channels out) of every residual block."""
    i, j, _ = latent_shape
    found, skips, now = [], [], module.widths[0]
    levels = list(enumerate(zip(module.widths, module.depths, strict=True)))
    for level, (width, depth) in levels:
        now = width  # halved to so many
        for _ in range(depth):
            found.append(((i >> level) * (j >> level), now, width))
            skips.append(width)
    for level, (width, depth) in reversed(levels):
        now = width
        for _ in range(depth):
            found.append(((i >> level) * (j >> level), now + skips.pop(), width))
    return found
