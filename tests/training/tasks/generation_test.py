"""The generate task: its loss and metrics, and the samples of a trained generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import common
from functa.diffusion import parameterization
from functa.diffusion.generator import build_generator
from functa.training.tasks import generation
from functa.training.tasks.builders import build_generation
from tests.support import losses
from tests.training.tasks.classification_test import CLASSES, SHAPE, FakeFunctaset


def make_config(**changes):
    config = common.base()
    config.data.num_classes = CLASSES
    config.field.latent_shape = SHAPE
    config.generate.update(batch_size=32, eval_batch_size=20, steps=600, copies="all")
    config.generate.model = common.denoising_mlp(width=64, depth=1, mlp_width=64)
    config.generate.optimizer.update(warmup_steps=5, learning_rate=5e-3)
    config.update_from_flattened_dict({f"generate.{key}": v for key, v in changes.items()})
    return config


def make_task(functaset, **changes):
    config = make_config(**changes)
    return build_generation(config, functaset, decode=lambda latents: latents[..., :1])


def make_generator(functaset, **changes):
    return build_generator(make_config(**changes).generate, functaset, num_classes=CLASSES)


@pytest.fixture(scope="module")
def functaset():
    return FakeFunctaset(train=256, validation=20, test=20)


@pytest.fixture(scope="module")
def trained(functaset):
    """(task, params after 600 steps)."""
    task = make_task(functaset)
    return task, losses.train(task, steps=600)[0]


def evaluate(task, params):
    (batch,) = task.data.eval_batches("validation")
    return task.metrics.summarize(jax.device_get(jax.jit(task.metrics.evaluate)(params, batch)))


def test_training_increases_r2(trained):
    task, params = trained
    before = evaluate(task, jax.jit(task.init)(jax.random.key(0)))
    assert before["r2"] == pytest.approx(0, abs=1e-6)  # the initial output is zero
    after = evaluate(task, params)
    assert after["r2"] > 0.1
    assert after["denoising_loss"] == pytest.approx((1 - after["r2"]) * before["denoising_loss"])


def test_samples_have_the_requested_class_and_the_scale_of_the_functaset(trained, functaset):
    _, params = trained
    labels = np.arange(60) % CLASSES
    sample = jax.jit(make_generator(functaset).sample)
    latents = np.asarray(sample(params, jax.random.key(0), jnp.arange(60), labels).latents)
    train = functaset.arrays["train"]
    means = np.stack([train["latents"][train["label"] == k].mean(0) for k in range(CLASSES)])
    std = train["latents"].std((0, 1, 2))

    def nearest_mean_accuracy(latents, labels):
        distances = np.square((latents[:, None] - means[None]) / std).sum((2, 3, 4))
        return np.mean(distances.argmin(1) == labels)

    train_accuracy = nearest_mean_accuracy(train["latents"], train["label"])  # classes overlap
    assert nearest_mean_accuracy(latents, labels) > train_accuracy - 0.1
    assert nearest_mean_accuracy(latents, (labels + 1) % CLASSES) < 0.2
    assert latents.std((0, 1, 2)) == pytest.approx(std, rel=0.3)


def test_a_sample_is_a_function_of_key_number_and_label(trained, functaset):
    _, params = trained
    sample = jax.jit(make_generator(functaset, **{"schedule.steps": 4}).sample)

    def latents(numbers, labels, seed=0):
        inputs = jnp.array(numbers), jnp.array(labels)
        return np.asarray(sample(params, jax.random.key(seed), *inputs).latents)

    both, swapped = latents([3, 5], [0, 1]), latents([5, 3], [1, 0])
    np.testing.assert_allclose(both, swapped[::-1], rtol=1e-4, atol=1e-4)
    other_number_and_label = latents([4, 5], [0, 2])
    for other in (other_number_and_label, latents([3, 5], [0, 1], seed=1)):
        assert np.abs(both - other).max(axis=(1, 2, 3)).min() > 1e-3


def test_loss_is_the_diffusion_loss_of_normalized_latents(functaset):
    task = make_task(functaset, label_dropout=0.5)
    params = jax.jit(task.init)(jax.random.key(0))
    batch, key = next(task.data.train_batches(0, 1)), jax.random.key(4)
    mean, std = (np.float32(getattr(functaset.manifest, name)) for name in ("mean", "std"))
    latents = (batch["latents"] - mean) / std
    edm = parameterization.make_parameterization(**common.edm())
    noisy_batch = parameterization.sample_noise_and_labels(
        edm, key, latents, batch["label"], null_class=CLASSES, label_dropout=0.5
    )
    assert 4 < np.sum(np.asarray(noisy_batch.labels) == CLASSES) < 28
    # The initial output is zero.
    expected = parameterization.losses(edm, lambda x, *_: 0 * x, latents, noisy_batch).mean()
    value, _ = losses.whole(task)(params, batch, key)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


def test_dashboard_shows_samples(trained):
    task, params = trained
    samples = task.illustrate(params).images["samples"]
    assert samples.shape == (16, *SHAPE[:2], 1)
    assert 0 <= samples.min() <= samples.max() <= 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.width": 0}, "generate.model: width=0"),
        ({"model": common.dit(patch=3)}, "generate.model: patch=3"),
        ({"parameterization.name": "ddpm"}, "generate.parameterization: name='ddpm'"),
        ({"schedule.steps": 0}, "generate.schedule: steps=0"),
        ({"solver.name": "rk"}, "generate.solver: name='rk'"),
        ({"guidance.interval": (2.0, 1.0)}, "generate.guidance: interval[0]=2.0"),
        ({"guidance.scale": 2.0, "label_dropout": 0.0}, "generate.guidance.scale=2"),
        ({"guidance_sweep": (1.0, -2.0)}, "generate.guidance_sweep[1]=-2.0"),
        ({"guidance_sweep": (1.0, 2.0), "label_dropout": 0.0}, "generate.guidance_sweep[1]=2"),
        ({"guidance_sweep": ("a",)}, "generate.guidance_sweep=('a',)"),
        ({"guidance_sweep": (1.0, 1.0)}, "generate.guidance_sweep=(1.0, 1.0)"),
        ({"normalization": "z"}, "generate.normalization='z'"),
        ({"cache": "gpu"}, "generate.cache='gpu'"),
        ({"copies": "one"}, "generate.copies='one'"),
        ({"label_dropout": 1.5}, "generate.label_dropout=1.5"),
        ({"sample_batch_size": 0}, "generate.sample_batch_size=0"),
        ({"optimizer.name": "x"}, "generate.optimizer"),
    ],
)
def test_invalid_settings_are_named(changes, key):
    problems = generation.validate(
        make_config(**changes).generate, latent_shape=SHAPE, num_classes=CLASSES
    )
    assert any(key in problem for problem in problems)
