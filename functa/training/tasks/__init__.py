"""Tasks: what the one training loop needs to know of a stage, as pure functions and its data."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

PyTree = Any
Batch = dict[str, np.ndarray]


class Task(NamedTuple):
    """One stage that trains.

    Attributes:
      name: the stage: "meta_learn", "classify".
      init: key -> params (a pytree of float32 arrays).
      draw: (batch, key) -> drawn batch. All that is random, drawn for the global batch, so that the number of
        devices changes nothing. Pure; traced under jit; `key` depends on (seed, stream, step) only.
      loss: (params, share of the drawn batch) -> (scalar mean over the share, {name: scalar mean to log}).
        Every example depends on itself alone, so that the loss is the mean over all shares.
      finish: {name: mean over the global batch} -> what is logged.
      evaluate: (params, batch) -> {name: [b, ...] array, one row an example}. The loop drops the
        rows whose batch["mask"] is 0 and concatenates the rest over the split, in order.
      summarize: {name: [N, ...] rows of a whole split} -> {name: float}, the metrics of that split.
      score: the key of `summarize` that tells the best checkpoint; higher is better.
      optimizer: of params.
      learning_rate: step -> outer learning rate, to be logged.
      watch: params -> ({name: number}, to be logged; a warning, "" where all is well), asked at
        every log step.
      images_per_step: what a step trains on, counted in whole images: half of one is 0.5.
      train_batches: (first_step, last_step) -> this process's share of the batches of steps
        first_step ... last_step - 1.
      eval_batches: split ("validation", "test") -> this process's share of the whole split, every
        batch of the same shape, with "mask" [b] float32 that is 0 for padding.
      illustrate: params -> Illustrations for the dashboard, shown at evaluations.
      spec: how the drawn batch lies on the mesh: mesh.BY_EXAMPLE or mesh.BY_ROWS.
      shards_params: whether params lie sharded over the mesh's axis fsdp; they are replicated if not.
    """

    name: str
    init: Callable[[jax.Array], PyTree]
    draw: Callable[[Any, jax.Array], Any]
    loss: Callable[[PyTree, Any], tuple[jax.Array, dict[str, jax.Array]]]
    finish: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
    evaluate: Callable[[PyTree, Any], dict[str, jax.Array]]
    summarize: Callable[[dict[str, np.ndarray]], dict[str, float]]
    score: str
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]
    watch: Callable[[PyTree], tuple[dict[str, float], str]]
    images_per_step: float
    train_batches: Callable[[int, int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    illustrate: Callable[[PyTree], "Illustrations"]
    spec: PartitionSpec
    shards_params: bool


class Illustrations(NamedTuple):
    """images: {name: [n, h, w, c] float32 in [0, 1]}; histograms: {name: array of any shape}."""

    images: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]
