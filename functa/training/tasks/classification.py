"""The classify stage: a classifier trained on the latents of a functaset."""

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
from functa.data.functaset import reader
from functa.data.functaset.batches import CACHES, COPIES, LatentBatches
from functa.data.functaset.format import float32_latents
from functa.models import classifier
from functa.models.normalization import KINDS, make_normalization
from functa.runtime import mesh
from functa.runtime.config import range_errors
from functa.training import optimizers
from functa.training.tasks import Illustrations, PyTree, Task

ILLUSTRATED_EXAMPLES = 256
TOP = 5  # classes that an example may be told to be of, in top5_accuracy
_MEANS = {"correct": "accuracy", "in_top5": "top5_accuracy", "loss": "loss"}  # of rows


def make(
    config: ConfigDict,
    functaset: reader.Functaset,
    *,
    process_index: int,
    process_count: int,
) -> Task:
    """The task of training `config.classify.model` on `functaset`.

    Raises:
      ValueError: impossible values in `config.classify` (all of them, see `check`), or a functaset
        whose statistics cannot normalise.
      TypeError: a misspelt optimiser key.
    """
    problems = check(config)
    if problems:
        raise ValueError("; ".join(problems))
    settings = config.classify
    num_classes = config.data.num_classes
    module = classifier.make_model(num_classes=num_classes, **settings.model)
    normalize = make_normalization(functaset, kind=settings.normalization).normalize
    optimizer = make_optimizer(config)
    batches = LatentBatches(
        functaset,
        cache=settings.cache,
        copies=settings.copies,
        process_index=process_index,
        process_count=process_count,
    )
    return Task(
        name="classify",
        init=make_init(module, latent_shape=tuple(config.field.latent_shape)),
        draw=make_draw(
            normalize,
            make_augment(config),
            num_classes=num_classes,
            mixup=settings.mixup,
        ),
        loss=make_loss(module, label_smoothing=settings.label_smoothing),
        finish=lambda logs: logs,
        evaluate=make_evaluate(module, normalize),
        summarize=summarize,
        score="accuracy",
        optimizer=optimizer.transformation,
        learning_rate=optimizer.learning_rate,
        watch=lambda params: ({}, ""),
        images_per_step=settings.batch_size,
        train_batches=lambda first_step, last_step: batches.train(
            batch_size=settings.batch_size,
            first_step=first_step,
            last_step=last_step,
            seed=config.seed,
        ),
        eval_batches=lambda split: batches.whole(split, batch_size=settings.eval_batch_size),
        illustrate=make_illustrate(
            module, normalize, source=lambda: functaset.source("validation", cache="none")
        ),
        spec=mesh.BY_EXAMPLE,
        shards_params=True,
    )


def check(config: ConfigDict) -> list[str]:
    """Every impossible value in `config.classify`, each with its number; [] if there is none."""
    settings = config.classify
    problems = []
    params = None
    try:
        model = classifier.make_model(num_classes=config.data.num_classes, **settings.model)
        init = make_init(model, latent_shape=tuple(config.field.latent_shape))
        params = jax.eval_shape(init, jax.random.key(0))
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        problems.append(f"classify.model: {error}")
    try:
        make_optimizer(config)
        if params is not None and settings.optimizer.layer_decay < 1:
            classifier.layer_rates(params, decay=settings.optimizer.layer_decay)
    except (TypeError, ValueError) as error:
        told = str(error).replace("optimizer.", "classify.optimizer.")
        problems += told.splitlines()
    try:
        make_augment(config)
    except (TypeError, ValueError) as error:
        problems.append(f"classify.augment: {error}")
    if settings.normalization not in KINDS:
        problems.append(f"classify.normalization={settings.normalization!r}: {', '.join(KINDS)}")
    if settings.cache not in CACHES:
        problems.append(f"classify.cache={settings.cache!r}: {', '.join(CACHES)}")
    if settings.copies not in COPIES:
        problems.append(f"classify.copies={settings.copies!r}: {', '.join(COPIES)}")
    return problems + range_errors(
        {
            "classify.mixup": (settings.mixup, 0.0, 1e3),
            "classify.label_smoothing": (settings.label_smoothing, 0.0, 0.999),
        }
    )


def make_optimizer(config: ConfigDict) -> optimizers.Optimizer:
    """The optimiser of config.classify, with a learning rate for each block where layer_decay is below 1.

    Raises:
      ValueError, TypeError: impossible values.
    """
    settings = config.classify
    shared = dict(settings.optimizer)
    decay = shared.pop("layer_decay")
    problems = range_errors({"optimizer.layer_decay": (decay, 1e-3, 1.0)})
    if problems:
        raise ValueError("\n".join(problems))
    made = optimizers.make(**shared, steps=settings.steps, decay_mask=classifier.decay_mask)
    if decay == 1:
        return made
    rates = optimizers.scaled(functools.partial(classifier.layer_rates, decay=decay))
    return optimizers.Optimizer(optax.chain(made.transformation, rates), made.learning_rate)


def make_augment(config: ConfigDict) -> latent_augmentation.Augment:
    """As config.classify.augment says; raises ValueError for what it cannot be."""
    shape = tuple(config.field.latent_shape)
    return latent_augmentation.make(latent_shape=shape, **config.classify.augment)


def make_init(module: nn.Module, *, latent_shape: tuple[int, ...]) -> Callable[[jax.Array], PyTree]:
    """init(key) -> params of `module` for latents [b, *latent_shape]."""

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
    """draw of Task: what the model is given and is to say.

    Returns:
      (batch, key) -> latents [b, i, j, d] float32, normalised, augmented and mixed; targets [b, num_classes]
      float32, probabilities; keys [b] of dropout. Every random number is a function of the key and of the
      position in the global batch.
    """

    def draw(batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        mixup_key, augment_key, model_key = jax.random.split(key, 3)
        latents = augment(normalize(float32_latents(batch)), augment_key)
        targets = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
        if mixup > 0:
            latents, targets = latent_augmentation.mix(latents, targets, key=mixup_key, alpha=mixup)
        keys = jax.random.split(model_key, len(latents))
        return {"latents": latents, "targets": targets, "keys": keys}

    return draw


def make_loss(
    module: nn.Module, *, label_smoothing: float
) -> Callable[[PyTree, Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """loss of Task: mean softmax cross-entropy in nats.

    "accuracy" is the fraction whose most likely class is the most heavily weighted one.
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
    """evaluate(params, batch) -> rows [b]: correct (0 or 1) and loss float32, prediction and label
    int32; of more than five classes also in_top5 (0 or 1) float32. The loss is the plain
    cross-entropy in nats, without label smoothing."""

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
        if logits.shape[-1] > TOP:
            likely = jax.lax.top_k(logits, TOP)[1].astype(label.dtype)
            rows["in_top5"] = jnp.any(likely == label[:, None], axis=-1).astype(jnp.float32)
        return rows

    return evaluate


def summarize(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a split from the rows of `evaluate`.

    Returns:
      accuracy, a fraction in [0, 1]; accuracy_standard_error, the binomial sqrt(a (1 - a) / N);
      top5_accuracy, of more than five classes: the fraction whose label is one of the five most likely;
      loss, the mean cross-entropy in nats.
    Raises:
      ValueError: there are no rows.
    """
    count = len(rows["correct"]) if rows else 0
    if count == 0:
        raise ValueError("a split of 0 examples has no accuracy; data.validation_examples sets one")
    means = {key: float(np.mean(rows[key], dtype=np.float64)) for key in rows if key in _MEANS}
    accuracy = means["correct"]
    return {_MEANS[key]: mean for key, mean in means.items()} | {
        "accuracy_standard_error": (accuracy * (1 - accuracy) / count) ** 0.5
    }


def make_illustrate(
    module: nn.Module,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    source: Callable[[], Any],
) -> Callable[[PyTree], Illustrations]:
    """Histograms over the first examples of `source()`: the norm of the normalised latents, and the
    confidence (probability of the most likely class). No images."""

    @jax.jit
    def statistics(params: PyTree, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = normalize(latents)
        logits = _logits(module, params, inputs, train=False)
        norms = jnp.sqrt(jnp.sum(inputs**2, axis=(1, 2, 3)))
        return norms, jnp.max(jax.nn.softmax(logits), axis=-1)

    def illustrate(params: PyTree) -> Illustrations:
        examples = source()
        count = min(ILLUSTRATED_EXAMPLES, examples.num_examples)
        latents = float32_latents(examples.read(np.arange(count)))
        # on this process alone: the others need not take part in a picture
        norms, confidence = jax.device_get(statistics(jax.device_get(params), latents))
        return Illustrations(images={}, histograms={"input_norm": norms, "confidence": confidence})

    return illustrate


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [num_classes, num_classes] int64: row = true class, column = predicted class.

    Args:
      labels, predictions: [n] integers in [0, num_classes).
    Raises:
      ValueError: an integer outside that range.
    """
    pairs = np.stack([np.asarray(labels), np.asarray(predictions)]).astype(np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < num_classes:
        raise ValueError(
            f"classes must be in [0, {num_classes}); found {pairs.min()} to {pairs.max()}"
        )
    counts = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
