"""What the stage generate draws, and how it is judged: labels, distances beside floor and ceiling, neighbours."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.data.images import Batch, ImageSource
from functa.diffusion import sharded_sampling
from functa.evaluation import distances, features, generative_metrics
from functa.evaluation.features import FeatureExtractor
from functa.models.normalization import Normalization
from functa.runtime.config import range_errors, read_json, write_json
from functa.training.progress import ProgressBar
from functa.training.tasks import generation

# That samples are compared with, and that the Gaussian is fitted to: so many, or, of large images, so many numbers.
MOST_TRAINING_EXAMPLES = 50_000
MOST_TRAINING_NUMBERS = 1 << 30
MOST_SWEPT = 250  # samples at every scale of guidance that is compared
MOST_NEIGHBOURS_OF = 1000  # samples whose nearest training images are looked for
SHOWN_CLASSES = 10  # in the report
SHOWN_OF_A_CLASS = 10  # samples in the report
_ROWS = 256  # samples of a Gaussian that are drawn at a time
SHOWN_NEIGHBOURS = 10


def check(config: ConfigDict) -> list[str]:
    """Every impossible value in config.generate.features; [] if there is none."""
    settings = config.generate.features
    keys = {"cnn": {"steps", "flip"}, "pca": {"components"}}
    if settings.get("name") not in keys:
        return [f"generate.features.name={settings.get('name')!r}: known are {', '.join(keys)}"]
    if set(settings) - {"name"} != keys[settings.name]:
        return [f"generate.features: {settings.name} has the keys {sorted(keys[settings.name])}"]
    if settings.name == "pca":
        pixels = math.prod(config.data.image_shape)
        return range_errors({"generate.features.components": (settings.components, 1, pixels)})
    return range_errors({"generate.features.steps": (settings.steps, 1, 10**7)})


def check_splits(config: ConfigDict, sources: dict[str, ImageSource]) -> list[str]:
    """What keeps samples from being judged by these images; [] if nothing does."""
    problems, examples = [], {name: source.num_examples for name, source in sources.items()}
    if examples["test"] < generative_metrics.MIN_IMAGES:
        problems.append(
            f"generate needs {generative_metrics.MIN_IMAGES} test images or more; there are {examples['test']}"
        )
    settings = config.generate.features
    if settings.get("name") == "pca" and settings.components >= examples["train"]:
        problems.append(
            f"generate.features.components={settings.components} must be below the number of training images, "
            f"{examples['train']}"
        )
    return problems


def sample_count(config: ConfigDict, functaset: Functaset) -> int:
    """As many as asked for, but no more than there are test images."""
    return min(config.generate.samples, functaset.num_examples("test"))


class Drawing:
    """The samples that are judged, and fewer at every scale of guidance that is compared, in files."""

    def __init__(self, config: ConfigDict, directory: epath.PathLike, labels: np.ndarray):
        """directory: of the files; labels: [n] int32, of each sample that is judged."""
        self.config, self.directory, self.labels = config, epath.Path(directory), labels

    def draw(
        self,
        normalization: Normalization,
        params: Any,
        *,
        say: Callable[[str], None],
        stop: Callable[[], None],
        process_index: int,
        process_count: int,
    ) -> float:
        """Draws what is missing of this process's share.

        Returns:
          Samples a second of all processes, by the clock of process 0 when it last drew some that are judged.

        Args:
          params: of the generator, on the host.
          stop: called between blocks; may raise.
        """
        sample = generation.make_sampler(self.config, normalization)

        def draw(
            name: str, sampler: sharded_sampling.Sampler, params: Any, labels: np.ndarray
        ) -> float:
            return sharded_sampling.draw(
                self.directory / name,
                sampler=sampler,
                params=params,
                labels=labels,
                block=self.config.generate.sample_batch_size,
                progress=ProgressBar(say, f"generate  blocks of samples, {name}"),
                stop=stop,
                process_index=process_index,
                process_count=process_count,
            )

        def guided(inputs: Any, numbers: jax.Array, labels: jax.Array) -> jax.Array:
            return sample(inputs["params"], numbers, labels, scale=inputs["scale"]).latents

        rate = draw("judged", lambda *inputs: sample(*inputs).latents, params, self.labels)
        told = self.directory / "speed.json"
        if rate and process_index == 0:
            block, count = self.config.generate.sample_batch_size, len(self.labels)
            own = min(count, block * len(sharded_sampling.share_of(count, block, 0, process_count)))
            write_json(told, {"samples_per_second": rate * count / own})
        for scale in self.config.generate.sweep:
            inputs = {"params": params, "scale": np.float32(scale)}
            draw(_of_scale(scale), guided, inputs, self.labels[:MOST_SWEPT])
        return read_json(told)["samples_per_second"] if told.exists() else 0.0

    def collect(self) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        """Latents [n, i, j, d] of the samples that are judged, and {scale: latents}."""
        few = len(self.labels[:MOST_SWEPT])
        swept = {
            float(scale): self._collect(_of_scale(scale), few)
            for scale in self.config.generate.sweep
        }
        return self._collect("judged", len(self.labels)), swept

    def _collect(self, name: str, count: int) -> np.ndarray:
        block = self.config.generate.sample_batch_size
        return sharded_sampling.collect(self.directory / name, count=count, block=block)


def _of_scale(scale: float) -> str:
    return f"guidance-{float(scale)!r}"


class Judge:
    """What there is to say of samples, on one process; the images are read and described once."""

    def __init__(
        self,
        config: ConfigDict,
        functaset: Functaset,
        *,
        sources: dict[str, ImageSource],
        count: int,
        decode: Callable[[np.ndarray], np.ndarray],
        classes: Callable[[np.ndarray], np.ndarray],
    ):
        """
        Args:
          count: of test images, the first ones, that samples are compared with.
          decode: latents -> images in [0, 1]; classes: latents -> classes, by the run's classifier.
        """
        self.config, self.decode, self.classes = config, decode, classes
        self.train, self.test = images_to_judge_by(config, sources, count)
        copies = functaset.manifest.config["encode"]["num_augmentations"]
        of_train = functaset.source("train", cache="none")
        rows = np.arange(len(self.train["label"])) * copies
        self.train_latents = np.asarray(float32_latents(of_train.read(rows)))
        of_test = functaset.source("test", cache="none").read(np.arange(count))
        self.test_latents = np.asarray(float32_latents(of_test))
        self.extractor = extractor(config, train=self.train, test=self.test)

    def judge(
        self, latents: np.ndarray, labels: np.ndarray
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(metrics, arrays for the report).

        Args:
          latents: [n, i, j, d] float32 of the samples; labels: [n] int32, the classes asked for, those of the test
            images.
        """
        count, config = len(latents), self.config
        gaussian = gaussian_samples(self.train_latents, count, seed=config.seed)
        images = {
            "test": self.test["image"] / np.float32(255),
            "samples": self.decode(latents),
            "reconstructions": self.decode(self.test_latents),
            "gaussian": self.decode(gaussian),
        }
        judged = generative_metrics.image_set_metrics(self.extractor, **images, seed=config.seed)
        few = slice(MOST_NEIGHBOURS_OF)
        pixels = generative_metrics.memorization(
            train=self.train["image"] / np.float32(255),
            test=images["test"][few],
            samples=images["samples"][few],
        )
        space = generative_metrics.memorization(
            train=self.train_latents, test=self.test_latents[few], samples=latents[few]
        )
        nearest = pixels.samples.indices[:SHOWN_NEIGHBOURS, 0]
        arrays = {
            "samples": by_class(images["samples"], labels, config.data.num_classes),
            "compared": images["samples"][:SHOWN_NEIGHBOURS],
            "nearest": self.train["image"][nearest] / np.float32(255),
            "gaussian": images["gaussian"][:SHOWN_OF_A_CLASS],
        }
        return {
            "label_agreement": self.agreement(latents, labels),
            "memorization_ratio": pixels.ratio,
            "memorization_ratio_latents": space.ratio,
            **judged,
        }, arrays

    def agreement(self, latents: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean(self.classes(latents) == labels))

    def sweep(self, drawn: dict[float, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays for the report, [s]: sweep_scale, sweep_agreement, sweep_distance (kernel distance from all test
        images) and sweep_standard_error of it.

        Both are NaN where a sample is not finite.

        Args:
          drawn: {scale of guidance: latents [m, i, j, d]}; labels: [n] int32, of which the first m were asked for.
        """
        if not drawn:
            return {}
        test = self.extractor.extract(self.test["image"] / np.float32(255))

        def distance(latents: np.ndarray) -> distances.Estimate:
            if not np.isfinite(
                latents
            ).all():  # guided too far: a hole in the curve, not the end of a run
                return distances.Estimate(math.nan, math.nan)
            made = self.extractor.extract(self.decode(latents))
            return distances.kernel_distance(
                test, made, subsets=generative_metrics.KERNEL_SUBSETS, seed=self.config.seed
            )

        distances_of = [distance(latents) for latents in drawn.values()]
        return {
            "sweep_scale": np.asarray(list(drawn)),
            "sweep_agreement": np.asarray(
                [self.agreement(latents, labels[: len(latents)]) for latents in drawn.values()]
            ),
            "sweep_distance": np.asarray([estimate.value for estimate in distances_of]),
            "sweep_standard_error": np.asarray([e.standard_error for e in distances_of]),
        }


def images_to_judge_by(
    config: ConfigDict, sources: dict[str, ImageSource], count: int
) -> tuple[Batch, Batch]:
    """Training images, as many as are compared with, and the first `count` test images."""
    numbers = math.prod(config.data.image_shape)
    most = min(MOST_TRAINING_EXAMPLES, MOST_TRAINING_NUMBERS // numbers)
    train, test = sources["train"], sources["test"]
    return train.read(np.arange(min(most, train.num_examples))), test.read(np.arange(count))


def extractor(
    config: ConfigDict, *, train: dict[str, Any], test: dict[str, Any]
) -> FeatureExtractor:
    """Of config.generate.features, made from images [n, h, w, c] uint8 and labels [n]."""
    settings = config.generate.features
    if settings.name == "pca":
        return features.fit_pca(train["image"], components=settings.components)
    return features.train_cnn(
        train["image"],
        train["label"],
        test_images=test["image"],
        num_classes=config.data.num_classes,
        steps=settings.steps,
        flip=settings.flip,
        seed=config.seed,
    )


def gaussian_samples(latents: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """`count` samples of the Gaussian with mean and covariance of latents [n, i, j, d]: the ceiling, what
    is had without a model.

    Each is the mean and a normal combination of the centred latents, which has their covariance; that itself would be
    34 GB for 65,536 numbers.
    """
    rows = latents.reshape(len(latents), -1)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    random = np.random.default_rng(seed)
    parts = [
        random.normal(size=(min(_ROWS, count - start), len(rows))).astype(np.float32) @ centred
        for start in range(0, count, _ROWS)
    ]
    drawn = mean + np.concatenate(parts) / np.float32(max(len(rows) - 1, 1) ** 0.5)
    return drawn.reshape(count, *latents.shape[1:])


def by_class(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The first ten samples of the first ten classes that have as many: [classes, 10, h, w, c]."""
    rows = [np.flatnonzero(labels == label)[:SHOWN_OF_A_CLASS] for label in range(num_classes)]
    whole = [some for some in rows if len(some) == SHOWN_OF_A_CLASS][:SHOWN_CLASSES]
    return np.stack([images[some] for some in whole] or [images[:SHOWN_OF_A_CLASS]])
