"""The task of the stage generate: its loss, its scores, its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functa.configs import common
from functa.diffusion import parameterization
from functa.training.tasks import generation
from tests.support import losses
from tests.training.tasks.classification_test import CLASSES, SHAPE, FakeFunctaset


def make_config(**changes):
    config = common.base()
    config.data.num_classes = CLASSES
    config.field.latent_shape = SHAPE
    config.generate.model = common.denoising_mlp(width=64, depth=1, mlp_width=64)
    config.generate.batch_size = 32
    config.generate.eval_batch_size = 20
    config.generate.steps = 600
    config.generate.optimizer.warmup_steps = 5
    config.generate.optimizer.learning_rate = 5e-3
    config.generate.copies = "all"
    config.update_from_flattened_dict(changes)
    return config


def make_task(functaset=None, **changes):
    functaset = functaset or FakeFunctaset(train=256, validation=20, test=20)
    return generation.make(
        make_config(**changes),
        functaset,
        decode=lambda latents: latents[..., :1],
        process_index=0,
        process_count=1,
    )


@pytest.fixture(scope="module")
def trained():
    """(functaset, task, params after 600 steps)."""
    functaset = FakeFunctaset(train=256, validation=20, test=20)
    task = make_task(functaset)
    loss = losses.whole(task)

    @jax.jit
    def step(params, state, batch, key):
        gradient, _ = jax.grad(loss, has_aux=True)(params, batch, key)
        updates, state = task.optimizer.transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(task.init)(jax.random.key(0))
    state = task.optimizer.transformation.init(params)
    for number, batch in enumerate(task.data.train_batches(0, 600)):
        params, state = step(params, state, batch, jax.random.key(number))
    return functaset, task, params


def scores(task, params):
    (batch,) = task.data.eval_batches("validation")
    return task.metrics.summarize(jax.device_get(jax.jit(task.metrics.evaluate)(params, batch)))


def test_training_explains_more_of_what_is_to_be_said(trained):
    _, task, params = trained
    before = scores(task, jax.jit(task.init)(jax.random.key(0)))
    assert before["explained"] == pytest.approx(0, abs=1e-6)  # all denoisers begin by saying zero
    after = scores(task, params)
    assert after["explained"] > 0.1
    assert after["denoising_loss"] == pytest.approx(
        (1 - after["explained"]) * before["denoising_loss"]
    )


def test_samples_are_of_the_class_that_was_asked_for(trained):
    functaset, _, params = trained
    sampler = generation.make_sampler(
        make_config(), generation.make_normalization(functaset, kind="channel")
    )
    labels = np.arange(60) % CLASSES
    latents = np.asarray(jax.jit(sampler)(params, jnp.arange(60), labels).latents)
    train = functaset.arrays["train"]
    means = np.stack([train["latents"][train["label"] == k].mean(0) for k in range(CLASSES)])
    spread = train["latents"].std((0, 1, 2))

    def agreement(latents, labels):
        gaps = np.square((latents[:, None] - means[None]) / spread).sum((2, 3, 4))
        return np.mean(gaps.argmin(1) == labels)

    # The classes overlap.
    assert agreement(latents, labels) > agreement(train["latents"], train["label"]) - 0.1
    assert agreement(latents, (labels + 1) % CLASSES) < 0.2
    assert latents.std((0, 1, 2)) == pytest.approx(spread, rel=0.3)  # as the functaset holds them


def test_a_sample_is_a_function_of_its_number_and_class(trained):
    functaset, _, params = trained
    normalization = generation.make_normalization(functaset, kind="channel")
    few = {"generate.schedule.steps": 4}
    sampler = jax.jit(generation.make_sampler(make_config(**few), normalization))
    both = sampler(params, jnp.array([3, 5]), jnp.array([0, 1])).latents
    swapped = sampler(params, jnp.array([5, 3]), jnp.array([1, 0])).latents
    np.testing.assert_allclose(both, swapped[::-1], rtol=1e-4, atol=1e-4)
    others = sampler(params, jnp.array([4, 5]), jnp.array([0, 2])).latents
    assert np.abs(both - others).max(axis=(1, 2, 3)).min() > 1e-3
    other = generation.make_sampler(make_config(**few, seed=1), normalization)
    assert np.abs(other(params, jnp.array([3, 5]), jnp.array([0, 1])).latents - both).max() > 1e-3


def test_the_loss_is_that_of_diffusion_on_normalised_latents():
    functaset = FakeFunctaset(train=64, validation=10, test=10)
    task = make_task(functaset, **{"generate.label_dropout": 0.5})
    params = jax.jit(task.init)(jax.random.key(0))
    batch = next(task.data.train_batches(0, 1))
    key = jax.random.key(4)
    latents = (batch["latents"] - np.float32(functaset.manifest.mean)) / np.float32(
        functaset.manifest.std
    )
    frame = parameterization.make_frame(**common.edm())
    drawn = parameterization.draw(
        frame, key, latents, batch["label"], null_class=CLASSES, label_dropout=0.5
    )
    assert 4 < np.sum(np.asarray(drawn.labels) == CLASSES) < 28
    # A network that says zero.
    expected = parameterization.losses(frame, lambda x, *_: 0 * x, latents, drawn).mean()
    value, _ = losses.whole(task)(params, batch, key)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


def test_pictures_for_the_dashboard(trained):
    _, task, params = trained
    shown = task.illustrate(params)
    assert shown.images["samples"].shape == (16, *SHAPE[:2], 1)
    assert shown.images["samples"].min() >= 0
    assert shown.images["samples"].max() <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"generate.model.width": 0}, "generate.model: the denoiser mlp cannot be built: width=0"),
        ({"generate.frame.name": "ddpm"}, "generate.frame: .*'ddpm': known are edm, flow"),
        ({"generate.schedule.steps": 0}, "generate.schedule: .*steps=0"),
        ({"generate.solver.name": "rk"}, "generate.solver: unknown solver 'rk'"),
        ({"generate.guidance.interval": (2.0, 1.0)}, r"generate.guidance: .*interval\[0\]=2"),
        (
            {"generate.guidance.scale": 2.0, "generate.label_dropout": 0.0},
            "wants a model that knows",
        ),
        ({"generate.sweep": (1.0, -2.0)}, r"generate.sweep\[1\]=-2.0 must be from 0"),
        (
            {"generate.sweep": (1.0, 2.0), "generate.label_dropout": 0.0},
            r"generate.sweep\[1\]=2 wants a model that knows",
        ),
        ({"generate.sweep": ("a",)}, r"generate.sweep=\('a',\): different numbers"),
        ({"generate.sweep": (1.0, 1.0)}, "different numbers"),
        ({"generate.normalization": "z"}, "generate.normalization='z'"),
        ({"generate.cache": "gpu"}, "generate.cache='gpu'"),
        ({"generate.copies": "one"}, "generate.copies='one': first, all"),
        ({"generate.label_dropout": 1.5}, "generate.label_dropout=1.5"),
        ({"generate.samples": 39}, "generate.samples=39"),
        ({"generate.optimizer.name": "x"}, "generate.optimizer"),
        ({"generate.model": common.dit(patch=3)}, "patch=3 must divide the latent grid"),
    ],
)
def test_impossible_settings_are_told(changes, told):
    with pytest.raises(ValueError, match=told):
        make_task(**changes)
