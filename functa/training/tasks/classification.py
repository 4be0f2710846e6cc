"""The classify task: trains a classifier on the latents of a functaset."""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from functa.data import latent_augmentation
from functa.data.functaset.batches import CACHES, COPIES
from functa.data.functaset.format import float32_latents
from functa.models import classifier
from functa.models.normalization import KINDS
from functa.runtime.config import range_errors
from functa.training import optimizers
from functa.training.tasks import Illustrations, PyTree

_SHOWN_EXAMPLES = 256
TOP_K = 5  # of top5_accuracy
_METRIC_NAMES = {"correct": "accuracy", "in_top5": "top5_accuracy", "loss": "loss"}


def validate(
    settings: ConfigDict, *, latent_shape: tuple[int, int, int], num_classes: int
) -> list[str]:
    """Problems of config.classify, one line each."""
    problems = []
    params = None
    try:
        model = classifier.make_classifier(num_classes=num_classes, **settings.model)
        params = jax.eval_shape(make_init(model, latent_shape=latent_shape), jax.random.key(0))
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        problems.append(f"classify.model: {error}")
    try:
        make_optimizer(settings)
        if params is not None and settings.optimizer.layer_decay < 1:
            classifier.layer_lr_scales(params, decay=settings.optimizer.layer_decay)
    except (TypeError, ValueError) as error:
        problems += str(error).replace("optimizer.", "classify.optimizer.").splitlines()
    try:
        make_augment(settings, latent_shape)
    except (TypeError, ValueError) as error:
        problems.append(f"classify.augment: {error}")
    choices = {"normalization": KINDS, "cache": CACHES, "copies": COPIES}
    problems += [
        f"classify.{key}={settings[key]!r} is unknown; choose from {', '.join(known)}"
        for key, known in choices.items()
        if settings[key] not in known
    ]
    return problems + range_errors(
        {
            "classify.mixup": (settings.mixup, 0.0, 1e3),
            "classify.label_smoothing": (settings.label_smoothing, 0.0, 0.999),
        }
    )


def make_optimizer(settings: ConfigDict) -> optimizers.Optimizer:
    """The optimizer of config.classify, with a learning rate per block if layer_decay is below 1.

    Raises:
      ValueError, TypeError: impossible values.
    """
    shared = dict(settings.optimizer)
    decay = shared.pop("layer_decay")
    problems = range_errors({"optimizer.layer_decay": (decay, 1e-3, 1.0)})
    if problems:
        raise ValueError("\n".join(problems))
    optimizer = optimizers.make(**shared, steps=settings.steps, decay_mask=classifier.decay_mask)
    if decay == 1:
        return optimizer
    multipliers = functools.partial(classifier.layer_lr_scales, decay=decay)
    return optimizer.followed_by(optimizers.scale_updates(multipliers))


def make_augment(
    settings: ConfigDict, latent_shape: tuple[int, int, int]
) -> latent_augmentation.Augment:
    """The augmentation of config.classify.augment. Raises ValueError for impossible values."""
    return latent_augmentation.make_augment(latent_shape=latent_shape, **settings.augment)


def make_init(module: nn.Module, *, latent_shape: tuple[int, ...]) -> Callable[[jax.Array], PyTree]:
    """Returns init(key) -> params of `module` for latents [b, *latent_shape]."""

    def init(key: jax.Array) -> PyTree:
        latents = jnp.zeros((1, *latent_shape), jnp.float32)
        return module.init(key, latents, train=False)["params"]

    return init


def _logits(module: nn.Module, params: PyTree, inputs: jax.Array, **mode: Any) -> jax.Array:
    return cast(jax.Array, module.apply({"params": params}, inputs, **mode))


def make_draw(
    normalize: Callable[[jax.Array], jax.Array],
    augment: latent_augmentation.Augment,
    *,
    num_classes: int,
    mixup: float,
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """Returns `Task.sample_inputs`: the inputs and targets of a training batch.

    Returns:
      (batch, key) -> {latents [b, i, j, d] float32, normalized, augmented and mixed; targets
      [b, num_classes] float32 probabilities; keys [b] of dropout}. Every random number is a function of
      the key and of the position in the global batch.
    """

    def draw(batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        mixup_key, augment_key, model_key = jax.random.split(key, 3)
        latents = augment(normalize(float32_latents(batch)), augment_key)
        targets = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
        if mixup > 0:
            latents, targets = latent_augmentation.mixup(
                latents, targets, key=mixup_key, alpha=mixup
            )
        keys = jax.random.split(model_key, len(latents))
        return {"latents": latents, "targets": targets, "keys": keys}

    return draw


def make_loss(
    module: nn.Module, *, label_smoothing: float
) -> Callable[[PyTree, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns `Task.loss`: mean softmax cross-entropy in nats.

    The logged "accuracy" is the fraction of examples whose most likely class has the largest target.
    """

    def logits_of_one(params: PyTree, latents: jax.Array, key: jax.Array) -> jax.Array:
        return _logits(module, params, latents[None], train=True, rngs={"dropout": key})[0]

    def loss(params: PyTree, drawn: Any):
        targets = drawn["targets"]
        logits = jax.vmap(logits_of_one, (None, 0, 0))(params, drawn["latents"], drawn["keys"])
        smooth = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
        mean_loss = jnp.mean(optax.softmax_cross_entropy(logits, smooth))
        hits = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        return mean_loss, {"loss": mean_loss, "accuracy": jnp.mean(hits.astype(jnp.float32))}

    return loss


def make_evaluate(
    module: nn.Module, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[PyTree, Any], dict[str, jax.Array]]:
    """Returns `TaskMetrics.evaluate`.

    Returns:
      (params, batch) -> rows [b]: correct (0 or 1) and loss float32, prediction and label int32; with
      more than five classes also in_top5 (0 or 1) float32. The loss is the cross-entropy in nats,
      without label smoothing.
    """

    def evaluate(params: PyTree, batch: Any) -> dict[str, jax.Array]:
        logits = _logits(module, params, normalize(float32_latents(batch)), train=False)
        label = batch["label"]
        prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        rows = {
            "correct": (prediction == label).astype(jnp.float32),
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "prediction": prediction,
            "label": label,
        }
        if logits.shape[-1] > TOP_K:
            likely = jax.lax.top_k(logits, TOP_K)[1].astype(label.dtype)
            rows["in_top5"] = jnp.any(likely == label[:, None], axis=-1).astype(jnp.float32)
        return rows

    return evaluate


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a split from the rows of `evaluate`.

    Returns:
      accuracy, in [0, 1]; accuracy_standard_error, the binomial sqrt(a (1 - a) / N); with more than
      five classes top5_accuracy; loss, the mean cross-entropy in nats.
    Raises:
      ValueError: there are no rows.
    """
    count = len(rows["correct"]) if rows else 0
    if count == 0:
        raise ValueError("an empty split has no accuracy: set data.validation_examples above 0")
    means = {
        key: float(np.mean(rows[key], dtype=np.float64)) for key in rows if key in _METRIC_NAMES
    }
    accuracy = means["correct"]
    return {_METRIC_NAMES[key]: mean for key, mean in means.items()} | {
        "accuracy_standard_error": (accuracy * (1 - accuracy) / count) ** 0.5
    }


def make_illustrate(
    module: nn.Module,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    source: Callable[[], Any],
) -> Callable[[PyTree], Illustrations]:
    """Returns `Task.illustrate`: histograms over the first examples of `source()`.

    They show the norm of the normalized latents and the probability of the most likely class.
    """

    @jax.jit
    def statistics(params: PyTree, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = normalize(latents)
        logits = _logits(module, params, inputs, train=False)
        norms = jnp.sqrt(jnp.sum(inputs**2, axis=(1, 2, 3)))
        return norms, jnp.max(jax.nn.softmax(logits), axis=-1)

    def illustrate(params: PyTree) -> Illustrations:
        examples = source()
        count = min(_SHOWN_EXAMPLES, examples.num_examples)
        latents = float32_latents(examples.read(np.arange(count)))
        # On this process only, so on host arrays.
        norms, confidence = jax.device_get(statistics(jax.device_get(params), latents))
        return Illustrations(images={}, histograms={"input_norm": norms, "confidence": confidence})

    return illustrate


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of (true class, predicted class): [num_classes, num_classes] int64.

    Args:
      labels, predictions: [n] integers in [0, num_classes).
    Raises:
      ValueError: a class is out of range.
    """
    pairs = np.stack([np.asarray(labels), np.asarray(predictions)]).astype(np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < num_classes:
        raise ValueError(
            f"classes must be in [0, {num_classes}); found {pairs.min()} to {pairs.max()}"
        )
    counts = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
