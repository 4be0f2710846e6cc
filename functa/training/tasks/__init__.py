"""The interface between the training loop and a stage, and one module per stage that trains.

A task is a set of pure functions and data; it knows nothing of steps, devices or files.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from functa.runtime import mesh
from functa.training.optimizers import Optimizer

PyTree = Any
Batch = dict[str, np.ndarray]
Logs = dict[str, jax.Array]


class TaskData(NamedTuple):
    """Batches of a task. Every process yields its share of each global batch.

    Attributes:
      train_batches: (first_step, last_step) -> batches of steps first_step ... last_step - 1.
      eval_batches: split ("validation" or "test") -> batches of the whole split, all of one shape.
        Each has "mask" [b] float32, which is 0 for padding.
      images_per_step: size of the global batch in whole images; half an image counts 0.5.
    """

    train_batches: Callable[[int, int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    images_per_step: float


class TaskMetrics(NamedTuple):
    """Evaluation of a task.

    Attributes:
      evaluate: (params, batch) -> {name: [b, ...]}, one row per example. The training loop drops the
        rows of padding and concatenates the rest over a split, in order.
      summarize: {name: [N, ...], rows of a whole split} -> {name: float}, the metrics of the split.
      score: key of `summarize` that selects the best checkpoint; higher is better.
    """

    evaluate: Callable[[PyTree, Any], dict[str, jax.Array]]
    summarize: Callable[[dict[str, np.ndarray]], dict[str, float]]
    score: str


class Illustrations(NamedTuple):
    """Pictures of a model for TensorBoard.

    Attributes:
      images: {name: [n, h, w, c] float32 in [0, 1]}.
      histograms: {name: array of any shape}.
    """

    images: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]


class Task(NamedTuple):
    """A stage that trains a model.

    Attributes:
      name: the stage, for example "meta_learn"; also the key of its settings in the config.
      init: key -> params, a pytree of float32 arrays.
      sample_inputs: (global batch, key) -> inputs of `loss`. All randomness (crops, augmentation,
        noise) is sampled here for the global batch, so that results do not depend on the number of
        devices. Traced under jit; `key` depends on (seed, stream, step) only.
      loss: (params, a shard of the inputs) -> (scalar mean over the shard, {name: scalar mean}).
        Examples are independent, so the mean over shards is the loss of the batch.
      optimizer: of params.
      data, metrics: see TaskData and TaskMetrics.
      finalize_logs: {name: mean over the global batch} -> scalars to log.
      headline: logged scalars -> what the log says about a step, in units that a person reads.
      monitor: params -> ({name: number}, warning), called whenever the loop logs. The warning is
        empty if training is healthy.
      illustrate: params -> Illustrations, called after each evaluation.
      batch_spec: sharding of the inputs: mesh.BY_EXAMPLE or mesh.BY_ROWS.
      shard_params: whether params are sharded over the mesh axis fsdp instead of replicated.
    """

    name: str
    init: Callable[[jax.Array], PyTree]
    sample_inputs: Callable[[Any, jax.Array], Any]
    loss: Callable[[PyTree, Any], tuple[jax.Array, Logs]]
    optimizer: Optimizer
    data: TaskData
    metrics: TaskMetrics
    finalize_logs: Callable[[Logs], Logs] = lambda logs: logs
    headline: Callable[[dict[str, float]], str] = lambda scalars: f"loss {scalars['loss']:.4g}"
    monitor: Callable[[PyTree], tuple[dict[str, float], str]] = lambda params: ({}, "")
    illustrate: Callable[[PyTree], Illustrations] = lambda params: Illustrations({}, {})
    batch_spec: PartitionSpec = mesh.BY_EXAMPLE
    shard_params: bool = False
