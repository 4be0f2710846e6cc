"""What is said of generated samples: on pictures whose answer is known."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import digits
from functa.diffusion import sharded_sampling
from functa.evaluation import generation_eval

COUNT = 80


def latents_of(count, seed, label):
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 1, 1, 2)).astype(np.float32) * 0.1
    values[..., 0] += label[:, None, None]
    return values


class Latents:
    """A functaset of two copies a training image; the class is in the first channel."""

    def __init__(self):
        self.manifest = SimpleNamespace(config={"encode": {"num_augmentations": 2}})
        self.labels = {"train": np.arange(200) % 4, "test": np.arange(COUNT) % 4}

    def num_examples(self, split):
        return len(self.labels[split]) * (2 if split == "train" else 1)

    def source(self, split, cache):
        del cache
        labels = self.labels[split]
        latents = latents_of(len(labels), split == "test", labels / 4)
        if split == "train":
            # What an augmented copy would show.
            latents = np.stack([latents, 100 + latents], axis=1).reshape(-1, 1, 1, 2)
        return SimpleNamespace(
            num_examples=len(latents), read=lambda rows: {"latents": latents[rows]}
        )


def decode(latents):
    """2x2 pictures: brightness is the class, contrast the second channel."""
    first, second = latents[..., 0, 0, 0], latents[..., 0, 0, 1]
    image = np.stack([first, first + 0.1 * second, first, first - 0.1 * second], -1)
    return np.clip(image.reshape(-1, 2, 2, 1), 0, 1).astype(np.float32)


def source(split):
    functaset = Latents()
    made = functaset.source(split, "none")
    step = 2 if split == "train" else 1
    images = np.round(255 * decode(made.read(np.arange(0, made.num_examples, step))["latents"]))
    return SimpleNamespace(
        num_examples=len(images),
        read=lambda rows: {
            "image": images[rows].astype(np.uint8),
            "label": functaset.labels[split][rows].astype(np.int32),
        },
    )


def make_judge():
    config = digits.get_config("tiny")
    config.data.num_classes = 4
    config.generate.features = {"name": "pca", "components": 2}
    return generation_eval.Judge(
        config,
        Latents(),
        sources={split: source(split) for split in ("train", "test")},
        count=COUNT,
        decode=decode,
        classes=lambda latents: np.round(4 * np.nan_to_num(latents[:, 0, 0, 0])).astype(int) % 4,
    )


def judge(latents, labels):
    return make_judge().judge(latents, labels)


LABELS = (np.arange(COUNT) % 4).astype(np.int32)


def test_good_samples_are_near_the_floor_and_below_the_gaussian():
    told, arrays = judge(latents_of(COUNT, 5, LABELS / 4), LABELS)
    assert told["frechet_features"].startswith("pca")
    assert told["frechet_distance"] < 5 * told["frechet_floor"]
    assert told["label_agreement"] > 0.6
    assert told["memorization_ratio_latents"] == pytest.approx(
        1, abs=0.5
    )  # of the images, not of their copies
    assert arrays["samples"].shape == (4, 10, 2, 2, 1)


def test_bad_samples_are_seen():
    good, _ = judge(latents_of(COUNT, 5, LABELS / 4), LABELS)
    shifted, _ = judge(latents_of(COUNT, 5, LABELS / 4) + np.float32(0.3), LABELS)
    assert shifted["frechet_distance"] > 3 * good["frechet_distance"]
    swapped, _ = judge(latents_of(COUNT, 5, LABELS / 4), (LABELS + 1) % 4)
    assert swapped["label_agreement"] < 0.3
    copies, arrays = judge(
        Latents().source("train", "none").read(2 * np.arange(120, 120 + COUNT))["latents"], LABELS
    )
    assert copies["memorization_ratio_latents"] == 0
    np.testing.assert_allclose(arrays["compared"], arrays["nearest"], atol=0.003)


def test_scales_of_guidance_are_compared():
    good, few = latents_of(COUNT, 5, LABELS / 4), 60
    swept = {1.0: good[:few], 2.0: good[:few] + np.float32(0.3)}
    arrays = make_judge().sweep(swept, LABELS)
    assert arrays["sweep_scale"].tolist() == [1, 2]
    assert arrays["sweep_agreement"][0] > 0.6 > 0.3 > arrays["sweep_agreement"][1]
    near, far = arrays["sweep_distance"]
    assert far > near + 2 * arrays["sweep_standard_error"].max()
    assert make_judge().sweep({}, LABELS) == {}


def test_samples_that_are_not_finite_leave_a_hole():
    good = latents_of(COUNT, 5, LABELS / 4)
    bad = np.where(np.arange(COUNT)[:, None, None, None] == 7, np.float32(np.nan), good)
    arrays = make_judge().sweep({1.0: good, 100.0: bad}, LABELS)
    assert np.isfinite(arrays["sweep_distance"]).tolist() == [True, False]


def test_too_few_images_are_told():
    config = digits.get_config("tiny")
    config.generate.features = {"name": "pca", "components": 30}
    few = {"train": SimpleNamespace(num_examples=30), "test": SimpleNamespace(num_examples=39)}
    assert generation_eval.check_splits(config, few) == [
        "generate needs 40 test images or more; there are 39",
        "generate.features.components=30 must be below the number of training images, 30",
    ]
    enough = {"train": SimpleNamespace(num_examples=31), "test": SimpleNamespace(num_examples=40)}
    assert generation_eval.check_splits(config, enough) == []


def test_what_is_drawn_is_drawn_once_and_its_speed_kept(tmp_path, monkeypatch):
    config = digits.get_config("tiny")
    config.generate.sweep, config.generate.sample_batch_size = (0.5, 2.0), 16
    shape, calls = tuple(config.field.latent_shape), []

    def sampler(params, numbers, labels, scale=9.0):
        calls.append(1)
        value = params * numbers.astype(np.float32) + scale
        return SimpleNamespace(latents=value[:, None, None, None] + jnp.zeros((1, *shape)))

    monkeypatch.setattr(generation_eval.generation, "make_sampler", lambda *_: sampler)
    drawing = generation_eval.Drawing(config, tmp_path, LABELS)

    def draw(process_index, process_count):
        return drawing.draw(
            None,
            np.float32(10),
            say=lambda line: None,
            stop=lambda: None,
            process_index=process_index,
            process_count=process_count,
        )

    draw(1, 2)
    speed = draw(0, 2)
    assert speed > 0
    traced = len(calls)
    assert draw(0, 1) == speed
    assert len(calls) == traced
    judged, swept = drawing.collect()
    np.testing.assert_array_equal(judged[:, 0, 0, 0], 10 * np.arange(COUNT) + 9)
    # Where process 0 needs a second, so do all, whatever each one's share.
    clock = SimpleNamespace(monotonic=iter(range(100)).__next__)
    monkeypatch.setattr(sharded_sampling, "time", clock)
    for processes in (1, 3, 20):
        drawing = generation_eval.Drawing(config, tmp_path / f"{processes}", LABELS)
        assert draw(0, processes) == COUNT
    assert {scale: float(latents[3, 0, 0, 0]) for scale, latents in swept.items()} == {
        0.5: 30.5,
        2.0: 32.0,
    }


def test_a_gaussian_has_the_latents_mean_and_covariance():
    latents = np.random.default_rng(0).normal(size=(5000, 1, 2, 2)).astype(np.float32)
    latents[..., 1] += 2 * latents[..., 0] + 3
    drawn = generation_eval.gaussian_samples(latents, 5000, seed=1)
    assert drawn.shape == latents.shape
    flat, again = latents.reshape(5000, -1), drawn.reshape(5000, -1)
    np.testing.assert_allclose(flat.mean(0), again.mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(flat.T), np.cov(again.T), atol=0.4)


def test_a_gaussian_is_drawn_without_its_covariance():
    """Of 100,000 numbers it would be 40 GB."""
    latents = np.random.default_rng(0).normal(size=(3, 10, 10, 1000)).astype(np.float32)
    drawn = generation_eval.gaussian_samples(latents, 300, seed=1).reshape(300, -1)
    directions = latents.reshape(3, -1) - latents.reshape(3, -1).mean(0)
    inside = np.linalg.lstsq(directions.T, (drawn - drawn.mean(0)).T, rcond=None)[0]
    np.testing.assert_allclose(directions.T @ inside, (drawn - drawn.mean(0)).T, atol=1e-3)
    assert drawn.std(0).mean() == pytest.approx(
        latents.reshape(3, -1).std(0, ddof=1).mean(), rel=0.1
    )


def test_of_many_classes_ten_are_shown():
    labels = np.arange(400) % 20
    images = np.arange(400, dtype=np.float32).reshape(400, 1, 1, 1)
    shown = generation_eval.by_class(images, labels, 20)
    np.testing.assert_array_equal(shown[..., 0, 0, 0] % 20, np.arange(10)[:, None] + np.zeros(10))


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ({"name": "vgg"}, "generate.features.name='vgg': known are cnn, pca"),
        ({"name": "cnn", "steps": 5}, "generate.features: cnn has the keys"),
        ({"name": "pca", "components": 0}, "generate.features.components=0"),
        ({"name": "pca", "components": 65}, "generate.features.components=65 must be from 1 to 64"),
    ],
)
def test_descriptions_that_are_none_are_told(features, told):
    config = digits.get_config("tiny")
    config.generate.features = features
    (problem,) = generation_eval.check(config)
    assert told in problem
