import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import digits
from functa.fields import inner_loop, linearization
from functa.fields.fitter import build_field, build_fitter
from functa.fields.image_parts import random_windows, window_field
from functa.fields.pixels import to_float
from functa.pipeline.validation import first_step_problems
from functa.training.tasks import meta_learning
from functa.training.tasks.builders import build_meta_learning
from tests.support import losses


class Images:
    """Image source: smooth waves of random direction."""

    def __init__(self, count):
        self.num_examples = count
        direction = np.random.default_rng(0).uniform(-2, 2, (count, 2, 1, 1))
        grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij")) / 4
        waves = np.sin((direction * grid).sum(1))
        self.images = (127.5 + 127.5 * waves).astype(np.uint8)[..., None]

    def read(self, indices):
        return {
            "image": self.images[indices],
            "label": np.zeros(len(indices), np.int32),
            "id": np.asarray(indices, np.int64),
        }


def make_config(**changes):
    config = digits.get_config("tiny")
    config.update_from_flattened_dict(changes)
    return config


def make(config, count=32):
    sources = {split: Images(count) for split in ("train", "validation", "test")}
    return build_meta_learning(config, sources=sources)


@pytest.mark.parametrize(("side", "cells", "corners"), [(1, 16, 12), (2, 64, 6), (3, 144, 2)])
def test_random_windows_are_cut_out_of_their_image(side, cells, corners):
    field = build_field(
        make_config(**{"data.image_shape": (8, 6, 1), "field.latent_shape": (4, 3, 8)})
    )
    images = np.arange(7 * 48, dtype=np.uint8).reshape(7, 8, 6, 1)
    windows = random_windows(jax.random.key(0), jnp.asarray(images), field, cells=cells, side=side)
    assert windows.shape == (7 * 16, 2 * side, 2 * side, 1)
    corners_seen = set()
    for index, window in enumerate(np.asarray(windows)):
        matches = [
            (row, column)
            for row in range(0, 8 - 2 * side + 1, 2)
            for column in range(0, 6 - 2 * side + 1, 2)
            if (
                images[index // 16, row : row + 2 * side, column : column + 2 * side] == window
            ).all()
        ]
        assert len(matches) == 1
        corners_seen.add(matches[0])
    assert len(corners_seen) == corners


def test_random_flips_give_all_four_mirror_images():
    image = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1)
    flipped = meta_learning.random_flips(jax.random.key(0), jnp.stack([image] * 32))
    mirrors = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
    matches = [[bool((one == mirror).all()) for mirror in mirrors] for one in flipped]
    assert all(sum(row) == 1 for row in matches)
    assert np.any(matches, axis=0).all()


def test_mean_loss_over_all_cells_is_the_loss_of_the_image():
    config = make_config()
    config.meta_learn.update(cells_per_image=0, flips=False, loss="mse")
    whole = make(config)
    params = whole.init(jax.random.key(0))
    images = Images(4).images
    expected, _ = losses.whole(whole)(params, {"image": images}, jax.random.key(1))
    field = build_field(config)
    cells = to_float(images).reshape(4, 2, 4, 2, 4, 1).swapaxes(2, 3).reshape(16, 4, 4, 1)
    fit = inner_loop.fit(
        window_field(field, 1),
        params["field"],
        params["log_inner_lrs"],
        cells,
        steps=config.inner_loop.steps,
        second_order=True,
    )
    assert float(fit.losses[-1].mean()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("cells", "side"), [(0, 1), pytest.param(3, 1, marks=pytest.mark.slow), (8, 2)]
)
def test_log_mse_is_the_mean_over_images_not_cells(cells, side):
    images, key = Images(4).images, jax.random.key(1)
    config = make_config(
        **{
            "field.latent_shape": (4, 4, 4),
            "meta_learn.cells_per_image": cells,
            "meta_learn.window": side,
            "meta_learn.flips": False,
        }
    )
    task = make(config)
    params = task.init(jax.random.key(0))
    loss, logs = losses.whole(task)(params, {"image": images}, key)
    seen, field = to_float(images), build_field(config)
    if cells:
        seen = random_windows(jax.random.split(key)[0], seen, field, cells=cells, side=side)
        field = window_field(field, side)
    loop = config.inner_loop
    fitted = inner_loop.fit(
        field, params["field"], params["log_inner_lrs"], seen, steps=loop.steps, second_order=True
    ).losses[-1]
    errors = np.asarray(fitted).reshape(4, -1).mean(1)
    assert float(loss) == pytest.approx(np.log(errors + 1e-6).mean(), rel=1e-5)
    assert float(logs["psnr_of_mean_mse"]) == pytest.approx(-10 * np.log10(errors.mean()), rel=1e-5)


def test_initial_learning_rates_are_a_multiple_of_the_inverse_curvature():
    config = make_config(**{"inner_loop.initial_lr": 0.5})
    params = make(config).init(jax.random.key(0))
    cell = window_field(build_field(config), 1)
    curvature = linearization.spectral_radius(cell, params["field"], jnp.zeros((1, 1, 1, 1)))[0]
    np.testing.assert_allclose(jnp.exp(params["log_inner_lrs"]), 0.5 / curvature, rtol=0.02)


def test_growing_curvature_is_reported():
    task = make(make_config())
    params = task.init(jax.random.key(0))
    field = window_field(build_field(make_config()), 1)
    radii = linearization.spectral_radius(field, params["field"], params["log_inner_lrs"])
    scalars, warning = task.monitor(params)
    np.testing.assert_allclose([scalars[f"inner_radius_{k}"] for k in range(3)], radii, rtol=1e-5)
    assert not warning
    grown = params["log_inner_lrs"].at[1].add(jnp.log(12 / radii[1]))
    scalars, warning = task.monitor(params | {"log_inner_lrs": grown})
    assert scalars["inner_radius_1"] == pytest.approx(12, rel=1e-4)
    assert "is 12" in warning
    # The radius is quadratic in these weights and starts at 0.1.
    params["field"]["map"]["weight"] *= 12
    assert task.monitor(params)[1]
    params["field"]["map"]["weight"] *= 0
    assert max(task.monitor(params)[0].values()) < 1e-20


def test_an_unstable_first_step_is_reported_with_its_numbers():
    assert first_step_problems(make_config()) == []
    (problem,) = first_step_problems(make_config(**{"inner_loop.initial_lr": 3.0}))
    numbers = re.search(
        r"rate is (\S+) \(.* curvature (\S+), clipped .* below (\S+) are stable", problem
    )
    rate, curvature, stable = (float(number) for number in numbers.groups())
    assert stable == pytest.approx(2 / curvature, rel=1e-3)
    assert rate == pytest.approx(3 / curvature, rel=1e-3)
    assert first_step_problems(make_config(**{"inner_loop.min_lr": 900.0})) != []


def test_inner_learning_rates_stay_in_their_range():
    low, high = 1e-3, 2e-3
    config = make_config(**{"inner_loop.min_lr": low, "inner_loop.max_lr": high})
    config.meta_learn.optimizer.learning_rate = 0.3
    _, history = losses.train(make(config), steps=3)
    for logs in history:
        assert low * 0.9999 <= logs["inner_lr_min"]
        assert logs["inner_lr_max"] <= high * 1.0001


def test_training_lowers_the_loss():
    config = make_config(**{"meta_learn.optimizer.learning_rate": 0.02})
    _, history = losses.train(make(config), steps=12)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_evaluation_scores_whole_images():
    task = make(make_config())
    params = task.init(jax.random.key(0))
    images = Images(6).images
    rows = task.metrics.evaluate(params, {"image": images})
    fit = build_fitter(make_config()).fit(params, to_float(images))
    mse = np.mean(np.square(np.asarray(fit.values) - images / np.float32(255)), axis=(1, 2, 3))
    np.testing.assert_allclose(rows["mse"], mse, rtol=1e-5)
    summary = task.metrics.summarize({name: np.asarray(value) for name, value in rows.items()})
    assert summary["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-5)
    assert summary["psnr_of_mean_mse"] == pytest.approx(-10 * np.log10(np.mean(mse)), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_loop.steps": 0}, "inner_loop.steps=0"),
        ({"inner_loop.min_lr": 5000.0}, "inner_loop.min_lr"),
        ({"inner_loop.initial_lr": 0.0}, "initial_lr=0.0"),
        ({"inner_loop.lr_shape": "cell"}, "lr_shape=cell"),
        ({"inner_loop.lr_shape": "row"}, "lr_shape='row'"),
        ({"meta_learn.cells_per_image": 9}, "cells_per_image=9"),
        ({"meta_learn.cells_per_image": 2, "meta_learn.window": 2}, "cells_per_image=2"),
        ({"meta_learn.window": 0}, "meta_learn.window=0"),
        ({"meta_learn.loss": "l1"}, "meta_learn.loss='l1'"),
        ({"field.interpolation": "bilinear"}, "cells_per_image=0"),
        ({"field.latent_shape": (3, 3, 8)}, "3x3"),
    ],
)
def test_impossible_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        make(make_config(**changes))


@pytest.mark.parametrize(("loss", "value"), [("mse", 0.01), ("log_mse", np.log(0.01))])
def test_the_headline_is_the_psnr_of_the_loss(loss, value):
    settings = digits.get_config("tiny").meta_learn
    settings.loss = loss
    assert "20.00 dB" in meta_learning.headline(settings, {"loss": float(value)})
