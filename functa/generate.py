"""Judging what the stage generate has drawn: labels, distances beside their floor and ceiling, neighbours."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa import distances, inception, judging
from functa import features as features_lib
from functa.config import outside
from functa.data.functaset import Functaset
from functa.data.functaset_format import float32_latents
from functa.data.images import ImageSource
from functa.features import Extractor

# That samples are compared with, and that the Gaussian is fitted to.
MOST_TRAINING_EXAMPLES = 50_000
MOST_NEIGHBOURS_OF = 1000  # samples whose nearest training images are looked for
SHOWN_OF_A_CLASS = 10  # samples in the report
SHOWN_NEIGHBOURS = 10


def check(config: ConfigDict) -> list[str]:
    """Every impossible value in config.generate.features; [] if there is none."""
    settings = config.generate.features
    keys = {"cnn": {"steps", "flip"}, "pca": {"components"}, "inception": {"path"}}
    if settings.get("name") not in keys:
        return [f"generate.features.name={settings.get('name')!r}: known are {', '.join(keys)}"]
    if set(settings) - {"name"} != keys[settings.name]:
        return [f"generate.features: {settings.name} has the keys {sorted(keys[settings.name])}"]
    if settings.name == "inception":
        if epath.Path(settings.path).exists():
            return []
        return [
            f"generate.features.path={settings.path}: there is no such file; tools/convert_inception.py makes it"
        ]
    number = "steps" if settings.name == "cnn" else "components"
    return outside({f"generate.features.{number}": (settings[number], 1, 10**7)})


def sample_count(config: ConfigDict, functaset: Functaset) -> int:
    """As many as asked for, but no more than there are test images.

    Raises:
      ValueError: too few to judge them by.
    """
    count = min(config.generate.samples, functaset.num_examples("test"))
    if count < judging.FEWEST:
        raise ValueError(
            f"samples are judged by test images, {judging.FEWEST} at least, and there are {count}"
        )
    return count


def judge(
    config: ConfigDict,
    functaset: Functaset,
    *,
    sources: dict[str, ImageSource],
    latents: np.ndarray,
    labels: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    classes: Callable[[np.ndarray], np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What there is to say of samples, on one process.

    Args:
      latents: [n, i, j, d] float32 of the samples; labels: [n] int32, the classes asked for, those of the
        first n test images.
      decode: latents -> images in [0, 1]; classes: latents -> classes, by the run's classifier.
    Returns:
      (metrics, arrays for the report).
    """
    count = len(latents)
    train = sources["train"].read(_first(sources["train"].num_examples))
    test = sources["test"].read(np.arange(count))
    copies = functaset.manifest.config["encode"]["num_augmentations"]
    of_train = functaset.source("train", cache="none")
    rows = _first(of_train.num_examples // copies) * copies
    train_latents = np.asarray(float32_latents(of_train.read(rows)))
    of_test = functaset.source("test", cache="none").read(np.arange(count))
    test_latents = np.asarray(float32_latents(of_test))
    images = {
        "test": test["image"] / np.float32(255),
        "samples": decode(latents),
        "reconstructions": decode(test_latents),
        "gaussian": decode(gaussian_samples(train_latents, count, seed=config.seed)),
    }
    judged = judging.judge(extractor(config, train=train, test=test), **images, seed=config.seed)
    few = slice(MOST_NEIGHBOURS_OF)
    pixels = judging.memorisation(
        train=train["image"] / np.float32(255),
        test=images["test"][few],
        samples=images["samples"][few],
    )
    space = judging.memorisation(train=train_latents, test=test_latents[few], samples=latents[few])
    nearest = pixels.samples.indices[:SHOWN_NEIGHBOURS, 0]
    arrays = {
        "samples": by_class(images["samples"], labels, config.data.num_classes),
        "compared": images["samples"][:SHOWN_NEIGHBOURS],
        "nearest": train["image"][nearest] / np.float32(255),
        "gaussian": images["gaussian"][:SHOWN_OF_A_CLASS],
    }
    return {
        "label_agreement": float(np.mean(classes(latents) == labels)),
        "memorisation_ratio": pixels.ratio,
        "memorisation_ratio_latents": space.ratio,
        **judged,
    }, arrays


def _first(count: int) -> np.ndarray:
    return np.arange(min(MOST_TRAINING_EXAMPLES, count))


def extractor(config: ConfigDict, *, train: dict[str, Any], test: dict[str, Any]) -> Extractor:
    """Of config.generate.features, made from images [n, h, w, c] uint8 and labels [n]."""
    settings = config.generate.features
    if settings.name == "inception":
        return inception.extractor(settings.path)
    if settings.name == "pca":
        return features_lib.fit_pca(train["image"], components=settings.components)
    return features_lib.train_cnn(
        train["image"],
        train["label"],
        test_images=test["image"],
        test_labels=test["label"],
        num_classes=config.data.num_classes,
        steps=settings.steps,
        flip=settings.flip,
        seed=config.seed,
    ).extractor


def gaussian_samples(latents: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """`count` samples of the Gaussian with mean and covariance of latents [n, i, j, d]: the ceiling, what
    is had without a model."""
    fitted = distances.fit_gaussian(latents.reshape(len(latents), -1))
    noise = np.random.default_rng(seed).normal(size=(count, len(fitted.root)))
    drawn = fitted.mean + noise @ fitted.root
    return drawn.astype(np.float32).reshape(count, *latents.shape[1:])


def by_class(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The first ten samples of every class that has as many: [classes, 10, h, w, c]."""
    rows = [np.flatnonzero(labels == label)[:SHOWN_OF_A_CLASS] for label in range(num_classes)]
    return np.stack(
        [images[some] for some in rows if len(some) == SHOWN_OF_A_CLASS]
        or [images[:SHOWN_OF_A_CLASS]]
    )
