"""Evaluation of a generator: its metrics, those of reference images, and arrays for the report."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.data.images import Batch, ImageSource
from functa.evaluation import distances, features, generative_metrics
from functa.evaluation.features import FeatureExtractor
from functa.fields.pixels import to_float
from functa.runtime.config import range_errors

# Training examples that samples are compared with and the Gaussian is fitted to.
MAX_TRAIN_EXAMPLES = 50_000
MAX_TRAIN_VALUES = 1 << 30  # of all images
MAX_MEMORIZATION_SAMPLES = 1000
SHOWN_CLASSES = 10
SHOWN_PER_CLASS = 10
SHOWN_NEIGHBORS = 10
_GAUSSIAN_BATCH_SIZE = 256
_FEATURE_SETTINGS = {"cnn": {"steps", "flip"}, "pca": {"components"}}


def validate(settings: ConfigDict, *, image_shape: tuple[int, ...]) -> list[str]:
    """Problems of `samples` and `features` of config.generate, one line each."""
    ranges = {"samples": (settings.samples, generative_metrics.MIN_IMAGES, 10**9)}
    errors, extractor = [], settings.features
    keys = {"name"} | _FEATURE_SETTINGS.get(extractor.get("name"), set())
    if len(keys) == 1:
        known = ", ".join(_FEATURE_SETTINGS)
        errors.append(f"generate.features.name={extractor.get('name')!r} must be one of {known}")
    elif set(extractor) != keys:
        errors.append(f"generate.features must have the keys {', '.join(sorted(keys))}")
    elif extractor.name == "pca":
        ranges["features.components"] = (extractor.components, 1, math.prod(image_shape))
    else:
        ranges["features.steps"] = (extractor.steps, 1, 10**7)
    return errors + range_errors({f"generate.{key}": limits for key, limits in ranges.items()})


def validate_splits(settings: ConfigDict, sources: dict[str, ImageSource]) -> list[str]:
    """Problems if there are too few images for config.generate, one line each."""
    errors, train, test = [], sources["train"].num_examples, sources["test"].num_examples
    if test < generative_metrics.MIN_IMAGES:
        errors.append(f"generate needs {generative_metrics.MIN_IMAGES} test images, not {test}")
    components = settings.features.get("components", 0)
    if components >= train:
        errors.append(
            f"generate.features.components={components} must be below the {train} training images"
        )
    return errors


class Evaluator:
    """Metrics of samples against reference images, which are read once."""

    def __init__(
        self,
        feature_settings: ConfigDict,
        functaset: Functaset,
        *,
        sources: dict[str, ImageSource],
        count: int,
        decode: Callable[[np.ndarray], np.ndarray],
        classify: Callable[[np.ndarray], np.ndarray],
        num_classes: int,
        seed: int,
    ):
        """Reads the reference images and makes the extractor, which may train a network.

        Args:
          feature_settings: config.generate.features.
          sources: images of the functaset.
          count: the first `count` test images are the reference.
          decode: latents -> images in [0, 1].
          classify: latents -> classes.
          seed: seed of the extractor, of the Gaussian samples and of random subsets.
        """
        self.decode, self.classify = decode, classify
        self.num_classes, self.seed = num_classes, seed
        self.train, self.test = read_references(sources, count)
        copies = functaset.manifest.config["encode"]["num_augmentations"]
        rows = {"train": np.arange(len(self.train["label"])) * copies, "test": np.arange(count)}
        self.train_latents, self.test_latents = (
            np.asarray(float32_latents(functaset.source(split).read(rows[split])))
            for split in ("train", "test")
        )
        self.extractor = make_extractor(
            feature_settings, train=self.train, test=self.test, num_classes=num_classes, seed=seed
        )

    def evaluate(
        self, latents: np.ndarray, labels: np.ndarray
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Metrics, and arrays for the report.

        Args:
          latents: [n, i, j, d] float32 samples; labels: [n] int32, those of the test images.
        """
        gaussian = sample_gaussian(self.train_latents, len(latents), seed=self.seed)
        images = {
            "test": to_float(self.test["image"]),
            "samples": self.decode(latents),
            "reconstructions": self.decode(self.test_latents),
            "gaussian": self.decode(gaussian),
        }
        metrics = generative_metrics.image_set_metrics(self.extractor, **images, seed=self.seed)
        some = slice(MAX_MEMORIZATION_SAMPLES)
        pixels = generative_metrics.memorization(
            train=to_float(self.train["image"]),
            test=images["test"][some],
            samples=images["samples"][some],
        )
        in_latents = generative_metrics.memorization(
            train=self.train_latents, test=self.test_latents[some], samples=latents[some]
        )
        nearest = pixels.nearest[:SHOWN_NEIGHBORS]
        arrays = {
            "samples": select_by_class(images["samples"], labels, self.num_classes),
            "compared": images["samples"][:SHOWN_NEIGHBORS],
            "nearest": to_float(self.train["image"][nearest]),
            "gaussian": images["gaussian"][:SHOWN_PER_CLASS],
        }
        return {
            "label_agreement": self.label_agreement(latents, labels),
            "memorization_ratio": pixels.ratio,
            "memorization_ratio_latents": in_latents.ratio,
            **metrics,
        }, arrays

    def label_agreement(self, latents: np.ndarray, labels: np.ndarray) -> float:
        """Fraction of the samples that the classifier of the run assigns to their label."""
        return float(np.mean(self.classify(latents) == labels))

    def evaluate_guidance_sweep(
        self, sweep: dict[float, np.ndarray], labels: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Label agreement and kernel distance from all test images at each guidance scale.

        The distance is NaN if a sample is not finite, as samples of a large scale may be.

        Args:
          sweep: {guidance scale: latents [m, i, j, d]}.
          labels: [n] int32; the first m are those of the samples.
        Returns:
          {"guidance_sweep_KEY": [s]} with the keys scale, label_agreement, kernel_distance and
          standard_error (of the distance).
        """
        if not sweep:
            return {}
        test_features = self.extractor.extract(to_float(self.test["image"]))
        agreements, estimates = [], []
        for latents in sweep.values():
            agreements.append(self.label_agreement(latents, labels[: len(latents)]))
            if not np.isfinite(latents).all():
                estimates.append(distances.Estimate(math.nan, math.nan))
                continue
            estimate = distances.kernel_distance(
                test_features,
                self.extractor.extract(self.decode(latents)),
                subsets=generative_metrics.KERNEL_SUBSETS,
                seed=self.seed,
            )
            estimates.append(estimate)
        values, errors = zip(*estimates, strict=True)
        return {
            "guidance_sweep_scale": np.asarray(list(sweep)),
            "guidance_sweep_label_agreement": np.asarray(agreements),
            "guidance_sweep_kernel_distance": np.asarray(values),
            "guidance_sweep_standard_error": np.asarray(errors),
        }


def read_references(sources: dict[str, ImageSource], count: int) -> tuple[Batch, Batch]:
    """Reads training images, at most MAX_TRAIN_EXAMPLES, and the first `count` test images."""
    train, test = sources["train"], sources["test"]
    values_per_image = train.read(np.arange(1))["image"].size
    train_count = min(MAX_TRAIN_EXAMPLES, MAX_TRAIN_VALUES // values_per_image, train.num_examples)
    return train.read(np.arange(train_count)), test.read(np.arange(count))


def make_extractor(
    settings: ConfigDict,
    *,
    train: dict[str, Any],
    test: dict[str, Any],
    num_classes: int,
    seed: int,
) -> FeatureExtractor:
    """Returns the feature extractor of config.generate.features.

    Args:
      train, test: images [n, h, w, c] uint8 and labels [n].
    """
    if settings.name == "pca":
        return features.fit_pca(train["image"], components=settings.components)
    return features.train_cnn(
        train["image"],
        train["label"],
        test_images=test["image"],
        num_classes=num_classes,
        steps=settings.steps,
        flip=settings.flip,
        seed=seed,
    )


def sample_gaussian(latents: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Samples [count, i, j, d] of the Gaussian with mean and covariance of latents [n, i, j, d].

    It is a generator without a network, the upper reference of distances. A sample is the mean plus a
    sum of the centered latents with normally distributed weights, which has their covariance. The
    covariance matrix itself would take 34 GB for 65,536 values.
    """
    rows = latents.reshape(len(latents), -1)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = rows - mean
    random = np.random.default_rng(seed)
    sums = [
        random.normal(size=(min(_GAUSSIAN_BATCH_SIZE, count - start), len(rows))).astype(np.float32)
        @ centered
        for start in range(0, count, _GAUSSIAN_BATCH_SIZE)
    ]
    samples = mean + np.concatenate(sums) / np.float32(max(len(rows) - 1, 1) ** 0.5)
    return samples.reshape(count, *latents.shape[1:])


def select_by_class(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The first 10 images of the first 10 classes that have as many: [classes, 10, h, w, c]."""
    rows = [np.flatnonzero(labels == label)[:SHOWN_PER_CLASS] for label in range(num_classes)]
    full_rows = [row for row in rows if len(row) == SHOWN_PER_CLASS][:SHOWN_CLASSES]
    return np.stack([images[row] for row in full_rows] or [images[:SHOWN_PER_CLASS]])
