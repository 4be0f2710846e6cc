"""Evaluation of samples: metrics of images whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from functa.configs import common
from functa.evaluation import generation_eval

COUNT = 80
LABELS = (np.arange(COUNT) % 4).astype(np.int32)


def random_latents(count, seed, brightness):
    """[n, 1, 1, 2]: brightness and contrast of `decode`."""
    values = np.random.default_rng(seed).normal(size=(count, 1, 1, 2)).astype(np.float32) * 0.1
    values[..., 0] += brightness[:, None, None]
    return values


SAMPLES = random_latents(COUNT, 5, LABELS / 4)


def decode(latents):
    """2x2 images."""
    brightness, contrast = latents[..., 0, 0, 0], latents[..., 0, 0, 1]
    pixels = [brightness, brightness + 0.1 * contrast, brightness, brightness - 0.1 * contrast]
    return np.clip(np.stack(pixels, -1).reshape(-1, 2, 2, 1), 0, 1).astype(np.float32)


def classify(latents):
    return np.round(4 * np.nan_to_num(latents[:, 0, 0, 0])).astype(int) % 4


class StubFunctaset:
    """Four classes, each a brightness; two copies of every training image."""

    def __init__(self):
        self.manifest = SimpleNamespace(config={"encode": {"num_augmentations": 2}})
        self.labels = {"train": np.arange(200) % 4, "test": np.arange(COUNT) % 4}

    def latents(self, split):
        labels = self.labels[split]
        return random_latents(len(labels), split == "test", labels / 4)

    def source(self, split):
        latents = self.latents(split)
        if split == "train":  # an augmented copy is far from the image
            latents = np.stack([latents, 100 + latents], axis=1).reshape(-1, 1, 1, 2)
        return SimpleNamespace(read=lambda rows: {"latents": latents[rows]})


def image_source(split):
    functaset = StubFunctaset()
    images = np.round(255 * decode(functaset.latents(split))).astype(np.uint8)
    labels = functaset.labels[split].astype(np.int32)
    return SimpleNamespace(
        num_examples=len(images),
        read=lambda rows: {"image": images[rows], "label": labels[rows]},
    )


@pytest.fixture(scope="module")
def evaluator():
    return generation_eval.Evaluator(
        ConfigDict({"name": "pca", "components": 2}),
        StubFunctaset(),
        sources={split: image_source(split) for split in ("train", "test")},
        count=COUNT,
        decode=decode,
        classify=classify,
        num_classes=4,
        seed=0,
    )


def test_metrics_show_shifts_wrong_labels_and_copies(evaluator):
    good, arrays = evaluator.evaluate(SAMPLES, LABELS)
    assert good["frechet_distance"] < 5 * good["frechet_floor"]
    assert good["label_agreement"] > 0.6
    # Compared with the images, not with their augmented copies.
    assert good["memorization_ratio_latents"] == pytest.approx(1, abs=0.5)
    assert arrays["samples"].shape == (4, 10, 2, 2, 1)
    assert arrays["compared"].shape == arrays["nearest"].shape == (10, 2, 2, 1)
    shifted, _ = evaluator.evaluate(SAMPLES + np.float32(0.3), (LABELS + 1) % 4)
    assert shifted["frechet_distance"] > 3 * good["frechet_distance"]
    copies, arrays = evaluator.evaluate(StubFunctaset().latents("train")[120:], LABELS)
    assert copies["memorization_ratio_latents"] == 0
    np.testing.assert_allclose(arrays["compared"], arrays["nearest"], atol=0.003)


def test_guidance_sweep_compares_scales(evaluator):
    few = SAMPLES[:60]
    not_finite = np.where(np.arange(60)[:, None, None, None] == 7, np.float32(np.nan), few)
    sweep = {1.0: few, 2.0: few + np.float32(0.3), 100.0: not_finite}
    arrays = evaluator.evaluate_guidance_sweep(sweep, LABELS)
    assert arrays["guidance_sweep_scale"].tolist() == [1, 2, 100]
    agreement = arrays["guidance_sweep_label_agreement"]
    assert agreement[0] > 0.6 > 0.3 > agreement[1]
    near, far, undefined = arrays["guidance_sweep_kernel_distance"]
    assert far > near + 2 * arrays["guidance_sweep_standard_error"][:2].max()
    assert np.isnan(undefined)
    assert evaluator.evaluate_guidance_sweep({}, LABELS) == {}


def test_gaussian_samples_have_mean_and_covariance_of_the_latents():
    latents = np.random.default_rng(0).normal(size=(5000, 1, 2, 2)).astype(np.float32)
    latents[..., 1] += 2 * latents[..., 0] + 3
    samples = generation_eval.sample_gaussian(latents, 5000, seed=1)
    assert samples.shape == latents.shape
    flat, flat_samples = latents.reshape(5000, -1), samples.reshape(5000, -1)
    np.testing.assert_allclose(flat_samples.mean(0), flat.mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(flat_samples.T), np.cov(flat.T), atol=0.4)


def test_gaussian_samples_of_few_latents_lie_in_their_span():
    latents = np.random.default_rng(0).normal(size=(3, 5, 5, 100)).astype(np.float32)
    samples = generation_eval.sample_gaussian(latents, 300, seed=1).reshape(300, -1)
    flat = latents.reshape(3, -1)
    directions, offsets = flat - flat.mean(0), samples - samples.mean(0)
    weights = np.linalg.lstsq(directions.T, offsets.T, rcond=None)[0]
    np.testing.assert_allclose(directions.T @ weights, offsets.T, atol=1e-3)
    assert samples.std(0).mean() == pytest.approx(flat.std(0, ddof=1).mean(), rel=0.1)


def test_ten_complete_classes_are_shown():
    labels, images = np.arange(400) % 20, np.arange(400, dtype=np.float32).reshape(400, 1, 1, 1)
    shown = generation_eval.select_by_class(images, labels, 20)
    np.testing.assert_array_equal(shown[..., 0, 0, 0] % 20, np.arange(10)[:, None] + np.zeros(10))


def test_too_few_images_are_refused():
    settings = common.base().generate
    settings.features = {"name": "pca", "components": 30}

    def problems(**counts):
        sources = {name: SimpleNamespace(num_examples=count) for name, count in counts.items()}
        return generation_eval.validate_splits(settings, sources)

    test_problem, train_problem = problems(train=30, test=39)
    assert "39" in test_problem
    assert "generate.features.components=30" in train_problem
    assert problems(train=31, test=40) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"features": {"name": "vgg"}}, "generate.features.name='vgg'"),
        ({"features": {"name": "cnn", "steps": 5}}, "generate.features"),
        ({"features": {"name": "cnn", "steps": 0, "flip": True}}, "generate.features.steps=0"),
        ({"features": {"name": "pca", "components": 65}}, "generate.features.components=65"),
        ({"samples": 39}, "generate.samples=39"),
    ],
)
def test_invalid_settings_are_named(changes, key):
    settings = common.base().generate
    settings.update(changes)
    if "features" in changes:
        settings.features = changes["features"]
    (problem,) = generation_eval.validate(settings, image_shape=(8, 8, 1))
    assert key in problem
