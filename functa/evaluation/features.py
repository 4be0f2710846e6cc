"""Features in which sets of images are compared: those of a small trained network, or PCA.

All computation is local to the calling process.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from functa.evaluation import pca_baseline
from functa.fields.pixels import to_float
from functa.models import classifier
from functa.runtime import rng
from functa.runtime.batching import apply_in_batches
from functa.training import optimizers

NUM_FEATURES = 64
_MIN_CHANNELS = 16
_TRAIN_BATCH_SIZE = 64
_LEARNING_RATE = 2e-3
_EXTRACT_BATCH_SIZE = 500


class FeatureExtractor(NamedTuple):
    """Features of images.

    Attributes:
      name: "cnn" or "pca". Distances in different features are not comparable.
      extract: images [n, h, w, c] float32 in [0, 1] -> features [n, k] float32.
    """

    name: str
    extract: Callable[[np.ndarray], np.ndarray]


class Cnn(nn.Module, kw_only=True):
    """Convolutional classifier: 3x3 convolutions of stride 2 until a side is below 8, two dense layers.

    The last resolution has 64 channels, and each one before it half as many, but at least 16. There is
    no normalization because it would double the time of a training step on a CPU.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [b, h, w, c] float32 -> (features [b, 64] >= 0, logits [b, num_classes])."""
        side, halvings = min(images.shape[1:3]), 0
        while side >= 8:
            side, halvings = (side + 1) // 2, halvings + 1
        # Centered, so that the brightness does not dominate the outputs of the first layer.
        x = images - 0.5
        for level in range(halvings + 1):
            width = max(NUM_FEATURES >> (halvings - level), _MIN_CHANNELS)
            strides = (1, 1) if level == 0 else (2, 2)
            x = nn.relu(nn.Conv(width, (3, 3), strides=strides, name=f"conv_{level}")(x))
        x = nn.relu(nn.Conv(NUM_FEATURES, (3, 3), name="conv_last")(x))
        x = nn.relu(nn.Dense(NUM_FEATURES, name="features")(x.reshape(len(x), -1)))
        return x, nn.Dense(self.num_classes, name="logits")(x)


def train_cnn(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test_images: np.ndarray,
    num_classes: int,
    steps: int,
    flip: bool,
    seed: int,
) -> FeatureExtractor:
    """Trains a small classifier; its 64 penultimate activations are the features.

    Args:
      images: [n, h, w, c] uint8; labels: [n] integers in [0, num_classes).
      test_images: [m, h, w, c] uint8; the features are scaled to mean square 1 on these.
      steps: training steps of 64 images; 600 for 8x8 digits, 1,000 for MNIST, 4,000 for CIFAR-10.
      flip: mirror half of the images left-right in training; unsuitable for digits and letters.
      seed: determines the network, on one kind of device.
    """
    network = Cnn(num_classes=num_classes)
    params = train_network(network, images, labels, steps=steps, flip=flip, seed=seed)
    forward = jax.jit(lambda images: network.apply({"params": params}, images)[0])

    def features(images: np.ndarray) -> np.ndarray:
        return apply_in_batches(forward, images, batch_size=_EXTRACT_BATCH_SIZE)

    return _scaled_extractor("cnn", features, test_images)


def fit_pca(images: np.ndarray, *, components: int) -> FeatureExtractor:
    """Fits a PCA of pixels; its coefficients are the features.

    Args:
      images: [n, h, w, c] uint8; the features are scaled to mean square 1 on these. A matrix of
        (h w c)^2 values must fit into memory.
      components: number of features, less than n and at most h w c.
    """
    rows = to_float(images).reshape(len(images), -1)
    mean, basis = pca_baseline.principal_components(pca_baseline.moments(rows), components)

    def coefficients(images: np.ndarray) -> np.ndarray:
        return ((images.reshape(len(images), -1) - mean) @ basis).astype(np.float32)

    return _scaled_extractor("pca", coefficients, images)


def _scaled_extractor(
    name: str, features: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> FeatureExtractor:
    """Scales all features by one factor, so that their mean square over images (uint8) is 1."""
    mean_square = np.mean(np.square(features(to_float(images)), dtype=np.float64))
    scale = np.float32(np.sqrt(mean_square) or 1)
    return FeatureExtractor(name, lambda images: features(images) / scale)


def train_network(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    flip: bool,
    seed: int,
) -> Any:
    """Returns the trained params of a network (images -> features, logits); see `train_cnn`."""
    optimizer = optimizers.make(
        name="adamw",
        learning_rate=_LEARNING_RATE,
        schedule="cosine",
        warmup_steps=steps // 20,
        end_fraction=0.0,
        weight_decay=0.01,
        clip_norm=1.0,
        steps=steps,
        decay_mask=classifier.decay_mask,
    ).transformation
    augment_key = rng.stream_key(seed, "augment")

    @jax.jit
    def init():
        example = jnp.zeros((1, *images.shape[1:]), jnp.float32)
        params = network.init(rng.stream_key(seed, "init"), example)["params"]
        return params, optimizer.init(params)

    @jax.jit
    def train_step(state, step, images, labels):
        params, optimizer_state = state
        images = shift_and_flip(images, key=jax.random.fold_in(augment_key, step), flip=flip)
        images = to_float(images)

        def loss(params):
            _, logits = cast(tuple[jax.Array, jax.Array], network.apply({"params": params}, images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    state = init()
    for step, rows in enumerate(_batches(len(images), steps=steps, seed=seed)):
        state = train_step(state, np.int32(step), images[rows], labels[rows].astype(np.int32))
    return state[0]


def _batches(count: int, *, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Yields 64 row numbers below `count` per step; every epoch is a new permutation."""
    random = np.random.default_rng(rng.stream_seed(seed, "order"))
    rows = np.empty(0, np.int64)
    for _ in range(steps):
        while len(rows) < _TRAIN_BATCH_SIZE:
            rows = np.concatenate([rows, random.permutation(count)])
        yield rows[:_TRAIN_BATCH_SIZE]
        rows = rows[_TRAIN_BATCH_SIZE:]


def shift_and_flip(images: jax.Array, *, key: jax.Array, flip: bool) -> jax.Array:
    """Shifts images [b, h, w, c] by up to 1/16 of their size, at least one pixel, and fills with black.

    Args:
      flip: mirror each image left-right with probability 1/2.
    """
    b, h, w, c = images.shape
    shift_key, flip_key = jax.random.split(key)
    max_shift = max(1, min(h, w) // 16)
    margin = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    corners = jax.random.randint(shift_key, (b, 2), 0, 2 * max_shift + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
