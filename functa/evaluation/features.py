"""What a picture is described by when sets of pictures are compared: a network's features, or PCA.

Everything here runs on the devices of the process that calls it; no other process takes part.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from functa.fields import psnr
from functa.models import classifier
from functa.runtime import rng
from functa.training import optimizers

FEATURES = 64  # of the penultimate layer
_NARROWEST = 16  # channels
_BATCH = 64
_LEARNING_RATE = 2e-3  # of AdamW
_EXTRACTED_AT_ONCE = 500  # images


class Extractor(NamedTuple):
    """How a picture is described.

    Attributes:
      name: of the description, for results: distances in different ones cannot be compared.
      extract: images [n, h, w, c] float32 in [0, 1] -> features [n, k] float32. ValueError for
        images of another shape than it was made for.
    """

    name: str
    extract: Callable[[np.ndarray], np.ndarray]


class Cnn(NamedTuple):
    """A network that was trained on the data's own labels.

    Attributes:
      extractor: "cnn", its 64 penultimate features, divided by one number so that their mean square
        is 1 over the held-out images.
      logits: images [n, h, w, c] float32 in [0, 1] -> [n, num_classes] float32.
      accuracy: fraction of the held-out images that it gives the right label, in [0, 1].
    """

    extractor: Extractor
    logits: Callable[[np.ndarray], np.ndarray]
    accuracy: float

    def labels(self, images: np.ndarray) -> np.ndarray:
        """The most likely classes of images [n, h, w, c] float32 in [0, 1]: [n] int64."""
        return np.argmax(self.logits(images), axis=-1)


class Network(nn.Module, kw_only=True):
    """3x3 convolutions that halve the image until a side is below 8, and two linear layers.

    64 channels at the last resolution and half as many at each one before it, but at least 16.
    Normalisation is left out: it makes a step on a CPU twice as long.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """images [b, h, w, c] float32 -> (features [b, 64] >= 0, logits [b, num_classes])."""
        side, halvings = min(images.shape[1:3]), 0
        while side >= 8:
            side, halvings = (side + 1) // 2, halvings + 1
        # Centred, so that the first layer's outputs do not all follow the brightness.
        x = images - 0.5
        for level in range(halvings + 1):
            width = max(FEATURES >> (halvings - level), _NARROWEST)
            stride = (1, 1) if level == 0 else (2, 2)
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride, name=f"conv_{level}")(x))
        x = nn.relu(nn.Conv(FEATURES, (3, 3), name="conv_last")(x))
        x = nn.relu(nn.Dense(FEATURES, name="features")(x.reshape(len(x), -1)))
        return x, nn.Dense(self.num_classes, name="logits")(x)


def train_cnn(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
    steps: int,
    flip: bool,
    seed: int,
) -> Cnn:
    """Trains a small network to tell the classes apart, on shifted copies of the images.

    Args:
      images: [n, h, w, c] uint8; labels: [n] integers in [0, num_classes).
      test_images, test_labels: the same, held out: they are scored, and set the features' scale.
      steps: of 64 images; 600 for 8x8 digits, 1,000 for MNIST, 4,000 for CIFAR-10.
      flip: mirror half of the images left-right; not for digits and letters.
      seed: the same one gives the same network, on the same kind of device.
    Raises:
      ValueError: arrays of other shapes or types, or labels out of range.
    """
    for name, some, theirs in (("", images, labels), ("test_", test_images, test_labels)):
        _check_labelled(name, some, theirs, num_classes)
    if test_images.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"images are {list(images.shape[1:])}, test_images {list(test_images.shape[1:])}"
        )
    network = Network(num_classes=num_classes)
    params = _train(network, images, labels, steps=steps, flip=flip, seed=seed)
    forward = jax.jit(lambda some: network.apply({"params": params}, some))

    def both(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _check_shape(some, images.shape[1:])
        return in_batches(forward, some, size=_EXTRACTED_AT_ONCE)

    held_out, logits = both(test_images / np.float32(255))
    scale = _root_mean_square(held_out)
    return Cnn(
        extractor=Extractor("cnn", lambda some: both(some)[0] / scale),
        logits=lambda some: both(some)[1],
        accuracy=float(np.mean(np.argmax(logits, axis=-1) == test_labels)),
    )


def fit_pca(images: np.ndarray, *, components: int) -> Extractor:
    """Principal components of the pixels: what a distance means without any network.

    Args:
      images: [n, h, w, c] uint8, to be fitted; a matrix of (h w c)^2 numbers must fit into memory.
      components: of largest variance, at most n - 1 and h w c.
    Returns:
      "pca": coefficients, divided by one number so that their mean square is 1 over `images`.
    Raises:
      ValueError: arrays of other shapes or types, or more components than there are.
    """
    _check_images("images", images)
    shape = images.shape[1:]
    most = min(len(images) - 1, int(np.prod(shape)))
    if not 1 <= components <= most:
        raise ValueError(f"components={components} must be from 1 to {most} for {images.shape}")
    rows = (images / np.float32(255)).reshape(len(images), -1)
    mean, basis = psnr.fit_pca(rows, components)

    def project(rows: np.ndarray) -> np.ndarray:
        return ((rows - mean) @ basis).astype(np.float32)

    scale = _root_mean_square(project(rows))

    def extract(some: np.ndarray) -> np.ndarray:
        _check_shape(some, shape)
        return project(some.reshape(len(some), -1)) / scale

    return Extractor("pca", extract)


def in_batches(function: Callable[[Any], Any], images: np.ndarray, *, size: int) -> Any:
    """`function` of all images [n, ...], `size` at a time, as NumPy arrays [n, ...].

    The last batch is filled up with zeros, so that one program is compiled, whatever n.
    """
    results = []
    for first in range(0, len(images), size):
        some = images[first : first + size]
        filled = np.zeros((size, *images.shape[1:]), np.float32)
        filled[: len(some)] = some
        outputs = jax.device_get(function(filled))
        results.append(jax.tree.map(lambda output: output[: len(some)], outputs))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _train(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    flip: bool,
    seed: int,
) -> Any:
    """The network's params after `steps` steps."""
    shape = images.shape[1:]
    transformation = optimizers.make(
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
        images = jnp.zeros((1, *shape), jnp.float32)
        params = network.init(rng.stream_key(seed, "init"), images)["params"]
        return params, transformation.init(params)

    @jax.jit
    def step(state, number, images, labels):
        params, moments = state
        images = _augment(images, key=jax.random.fold_in(augment_key, number), flip=flip)
        images = images.astype(jnp.float32) / 255

        def loss(params):
            _, logits = cast(tuple[jax.Array, jax.Array], network.apply({"params": params}, images))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = transformation.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    state = init()
    for number, rows in enumerate(_batches(len(images), steps=steps, seed=seed)):
        state = step(state, np.int32(number), images[rows], labels[rows].astype(np.int32))
    return state[0]


def _batches(count: int, *, steps: int, seed: int) -> Iterator[np.ndarray]:
    """`steps` times 64 rows of `count`, each row once before any is used again."""
    random = np.random.default_rng(rng.stream_seed(seed, "order"))
    rows = np.empty(0, np.int64)
    for _ in range(steps):
        while len(rows) < _BATCH:
            rows = np.concatenate([rows, random.permutation(count)])
        yield rows[:_BATCH]
        rows = rows[_BATCH:]


def _augment(images: jax.Array, *, key: jax.Array, flip: bool) -> jax.Array:
    """Images [b, h, w, c] moved by up to a sixteenth of their size, at least by one pixel, over black."""
    b, h, w, c = images.shape
    shift_key, flip_key = jax.random.split(key)
    most = max(1, min(h, w) // 16)
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    corners = jax.random.randint(shift_key, (b, 2), 0, 2 * most + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    images = jax.vmap(cut)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def _root_mean_square(features: np.ndarray) -> np.float32:
    """Of features [n, k]; 1 where all are zero."""
    return np.float32(np.sqrt(np.mean(np.square(features, dtype=np.float64))) or 1)


def _check_shape(images: np.ndarray, shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
        raise ValueError(f"images must be [n, {str(list(shape))[1:]}, not {list(images.shape)}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be float32 in [0, 1], not {images.dtype}")


def _check_images(name: str, images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(
            f"{name} must be [n, h, w, c] uint8, not {list(images.shape)} {images.dtype}"
        )


def _check_labelled(name: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    _check_images(f"{name}images", images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} {name}images, but {name}labels {list(labels.shape)}")
    if not np.issubdtype(labels.dtype, np.integer) or not (
        0 <= labels.min() <= labels.max() < num_classes
    ):
        raise ValueError(
            f"{name}labels must be integers in [0, {num_classes}), not {labels.dtype} from "
            f"{labels.min()} to {labels.max()}"
        )
