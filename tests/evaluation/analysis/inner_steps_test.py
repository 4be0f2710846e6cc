"""PSNR by inner steps and of free latents, against the inner loop itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functa.configs import digits
from functa.evaluation.analysis import inner_steps
from functa.evaluation.analysis.trained_field import image_mse
from functa.fields import inner_loop
from functa.fields.fitter import build_field
from functa.training.tasks.builders import build_meta_learning
from tests.support import analysis_runs
from tests.support.analysis_runs import COUNT, psnr


def test_larger_images_have_smaller_batches(subject):
    sizes = []

    def double(values):
        sizes.append(len(values))
        return 2 * values

    values = np.arange(COUNT)
    np.testing.assert_array_equal(subject.in_batches(double, values), 2 * values)
    np.testing.assert_array_equal(subject.in_batches(double, values, scale=2), 2 * values)
    assert set(sizes[:3]) == {16}
    assert set(sizes[3:]) == {4}


def test_trained_number_of_steps_has_the_psnr_of_the_stage_meta_learn(run, subject):
    config, params, sources = run
    task = build_meta_learning(config, sources=sources)
    rows = jax.jit(task.metrics.evaluate)(params, {"image": subject.images})
    expected = task.metrics.summarize({name: np.asarray(value) for name, value in rows.items()})
    table = inner_steps.inner_steps(subject)["steps"]
    (row,) = [row for row in table.rows if row["steps"] == analysis_runs.INNER_STEPS]
    assert row["psnr"] == pytest.approx(expected["psnr"], abs=1e-4)
    assert row["psnr_of_mean_mse"] == pytest.approx(expected["psnr_of_mean_mse"], abs=1e-4)
    assert (row["gain"], row["worse"]) == (0, 0)
    assert [row["steps"] for row in table.rows] == [0, 1, 2, 3, 4, 6, 9, 10, 30, 100]
    assert table.images == COUNT


def test_other_numbers_of_steps_are_inner_loops_of_that_length(run, subject):
    log_lrs = run[1]["log_inner_lrs"]
    assert log_lrs.shape[0] == 3
    rows = {row["steps"]: row for row in inner_steps.inner_steps(subject)["steps"].rows}
    errors = {}
    for count in (2, 6):
        lrs = jnp.concatenate([log_lrs, jnp.repeat(log_lrs[-1:], 3, axis=0)])[:count]
        fit = functools.partial(inner_loop.fit, subject.field, steps=count, second_order=False)
        errors[count] = np.asarray(jax.jit(fit)(run[1]["field"], lrs, subject.targets).losses[-1])
        assert rows[count]["psnr"] == pytest.approx(psnr(errors[count]), abs=1e-3)
    worse = np.mean(errors[6] > subject.fitted.mse[:, -1])
    assert rows[6]["worse"] == pytest.approx(float(worse))
    assert rows[2]["worse"] > 0.9
    assert len({round(rows[count]["psnr"], 1) for count in (2, 3, 6)}) == 3


def test_inner_loop_continues_in_the_basis_of_bilinear_interpolation():
    field = build_field(digits.get_config("bilinear,tiny"))
    params = {"field": field.init(jax.random.key(0)), "log_inner_lrs": jnp.zeros((1, 1, 1, 1))}
    targets = jax.random.uniform(jax.random.key(1), (2, *field.image_shape))

    @functools.partial(jax.jit, static_argnames="steps")
    def fit(steps):
        return inner_loop.fit(field, *params.values(), targets, steps=steps, second_order=False)

    resume = functools.partial(inner_steps.continue_inner_loop, field, steps=2)
    errors = jax.jit(resume)(params, targets, fit(1).latents)
    np.testing.assert_allclose(errors[:, -1], fit(3).losses[-1], rtol=1e-5)


def test_optimized_latents_reach_an_image_that_the_field_represents(run, subject):
    latents, unit = subject.fitted.latents[:2], subject.channel_std
    targets = subject.decode(latents)
    offset = 0.3 * unit * np.random.default_rng(0).normal(size=latents.shape)
    start = (latents + offset).astype(np.float32)
    start_mse = image_mse(subject.decode(start), targets)
    optimize = jax.jit(
        functools.partial(inner_steps.optimize_latents, subject.field, run[1]["field"], steps=200)
    )
    assert psnr(optimize(unit, targets, start)) > psnr(start_mse) + 15
    # With learning rates that diverge, the start is the best.
    np.testing.assert_allclose(optimize(1e30 * unit, targets, start), start_mse, rtol=1e-4)


def test_free_latents_are_better_than_those_of_the_inner_loop(subject):
    inner, adam = inner_steps.free_latents(subject)["free"].rows
    assert inner["psnr"] == pytest.approx(psnr(subject.fitted.mse[:, -1]), abs=1e-4)
    assert adam["psnr"] > inner["psnr"] + 0.1
    assert adam["gain"] == pytest.approx(adam["psnr"] - inner["psnr"])
