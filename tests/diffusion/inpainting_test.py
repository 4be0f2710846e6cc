"""Imputation where the posterior is known, what is seen and kept, and tools/impute.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from functa.data import images as images_lib
from functa.diffusion import inpainting, solvers
from functa.diffusion.inpainting import METHODS
from functa.fields import inner_loop
from functa.pipeline import load as trained
from tests.cli.functaset_tools_test import load, refusal
from tests.support import generator_runs

impute = load("impute")
SIGMAS = solvers.karras_schedule(steps=160, sigma_min=0.02, sigma_max=40.0, rho=7.0)
LATENTS, PIXELS = (1, 1, 3), (2, 2, 1)
MATRIX = np.float32([[1, 0.5, 0], [0, 1, -1], [0.3, 0, 1], [1, 1, 1]])


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gaussian(noisy, sigma, labels):
    """The denoiser of standard normal latents."""
    return noisy / (1 + jnp.square(sigma))[:, None, None, None]


def linear_field(latents):
    return (latents.reshape(-1, 3) @ MATRIX.T).reshape(-1, *PIXELS)


def posterior(mask, data, std):
    """Mean and covariance of standard normal latents, given data = mask * (MATRIX latents) + std * noise."""
    seen = mask.reshape(-1, 1) * MATRIX
    covariance = np.linalg.inv(np.eye(3) + seen.T @ seen / std**2)
    return covariance @ seen.T @ data.reshape(-1) / std**2, covariance


@pytest.mark.parametrize("pixels_seen", [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
def test_draws_are_of_the_posterior_of_a_gaussian(pixels_seen):
    draws, std = 4000, 0.3
    mask = np.float32(pixels_seen).reshape(PIXELS)
    data = mask * linear_field(random(1, 1, *LATENTS))[0] + std * mask * random(2, *PIXELS)
    variances = jnp.asarray(SIGMAS[:-1] ** 2 / (1 + SIGMAS[:-1] ** 2))
    drawn = jax.jit(
        lambda: inpainting.impute(
            gaussian,
            lambda latents: mask[None] * linear_field(latents),
            jnp.broadcast_to(jnp.asarray(data), (draws, *PIXELS)),
            SIGMAS,
            jax.random.key(0),
            data_std=std,
            variances=variances,
            numbers=jnp.arange(draws),
            labels=jnp.zeros(draws, jnp.int32),
            latent_shape=LATENTS,
        )
    )()
    drawn = np.asarray(drawn).reshape(draws, 3)
    mean, covariance = posterior(mask, np.asarray(data), std)
    # Three standard errors of the mean; draws lie a little too close together, see `impute`.
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.05)
    found = np.cov(drawn.T)
    np.testing.assert_allclose(found, covariance, atol=0.15)
    assert 0.87 < np.trace(found) / np.trace(covariance) < 1.03


def test_the_error_of_a_denoiser_is_measured():
    latents = random(3, 4000, *LATENTS)
    labels = jnp.zeros(4000, jnp.int32)
    measured = inpainting.spread(gaussian, latents, labels, SIGMAS, jax.random.key(0))
    np.testing.assert_allclose(measured, SIGMAS[:-1] ** 2 / (1 + SIGMAS[:-1] ** 2), rtol=0.1)


def test_explain_finds_the_minimum_of_a_field_that_is_not_linear():
    expected, data = random(4, 5, *LATENTS), 0.5 * random(5, 5, *PIXELS)

    def seen(latents):
        return jnp.sin(0.5 * linear_field(latents))

    found = inpainting.explain(seen, data, expected, data_variance=0.5, variance=0.4)

    def cost(latents):
        misfit = jnp.square(data - seen(latents)).sum() / 0.5
        return misfit + jnp.square(latents - expected).sum() / 0.4

    # Slow descent from the same place.
    slow = jnp.asarray(expected)
    descend = jax.jit(lambda z: z - 0.02 * jax.grad(cost)(z))
    for _ in range(500):
        slow = descend(slow)
    assert cost(found) < cost(slow) + 0.05 * (cost(expected) - cost(slow))


def image(seed=0, shape=(3, 8, 8, 1)):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize(("task", "seen"), [("half", 32), ("random10", 6)])
def test_seen_pixels_are_kept_and_hidden_ones_scored(task, seen):
    kind, images = inpainting.KINDS[task], image()
    observation = inpainting.observe(kind, images, [(0, k) for k in range(3)])
    mask = np.asarray(observation.mask)
    assert mask.sum((1, 2, 3)).tolist() == [seen] * 3
    np.testing.assert_array_equal(observation.data, mask * images)
    made = np.where(mask == 1, 7, images + 0.1)
    filled = inpainting.fill_in(kind, observation, np.minimum(made, 2))
    np.testing.assert_array_equal(filled[mask == 1], images[mask == 1])
    wrong = filled + np.where(mask == 1, 100, 0)
    hidden = np.square(np.clip(images + 0.1, 0, 1) - images)[mask == 0].reshape(3, -1).mean(1)
    mse = inpainting.hidden_mse(kind, observation, wrong, images)
    np.testing.assert_allclose(mse, hidden, rtol=1e-3)
    if task == "half":
        assert not mask[:, :, :4].any()
    else:
        assert (mask[0] != mask[1]).any()


def test_means_of_blocks_are_seen():
    observation = inpainting.observe(inpainting.KINDS["lowres4"], image(), [()] * 3)
    blocks = image().reshape(3, 2, 4, 2, 4, 1).mean((2, 4))
    expected = blocks.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(observation.data, expected, rtol=1e-5)
    again = inpainting.view(observation.data, observation.mask, 4)
    np.testing.assert_allclose(again, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="6x8 pixels are not made of blocks of 4x4"):
        inpainting.observe(inpainting.KINDS["lowres4"], image(shape=(1, 6, 8, 1)), [()])


def test_noise_is_of_the_image_and_everything_is_scored():
    kind, images = inpainting.KINDS["noisy"], image(shape=(2, 64, 64, 1))
    observation = inpainting.observe(kind, images, [(1,), (2,)])
    noise = np.asarray(observation.data) - images
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    alone = inpainting.observe(kind, images[1:], [(2,)])
    np.testing.assert_array_equal(alone.data[0], observation.data[1])
    made = images * 0.5
    np.testing.assert_array_equal(inpainting.fill_in(kind, observation, made), made)
    mse = inpainting.hidden_mse(kind, observation, made, images)
    np.testing.assert_allclose(mse, np.square(made - images).mean((1, 2, 3)), rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("impute") / "run")


def test_without_prior_it_is_the_inner_loop_where_everything_is_seen(run):
    generator = trained.load_generator(run)
    images, steps = jnp.asarray(image()), 3
    all_seen = inpainting.Observation(jnp.ones_like(images), images)
    arguments = generator.field, generator.field_params
    latents = inpainting.fit(*arguments, all_seen, pool=1, steps=steps)
    whole = inner_loop.fit(
        generator.field,
        generator.field_params["field"],
        generator.field_params["log_inner_lrs"],
        images,
        steps=steps,
        second_order=False,
    )
    np.testing.assert_allclose(latents, whole.latents, rtol=1e-3, atol=1e-5)
    half = inpainting.observe(inpainting.KINDS["half"], np.asarray(images), [()] * 3)
    latents = inpainting.fit(*arguments, half, pool=1, steps=steps)
    np.testing.assert_allclose(latents[:, :, 1], whole.latents[:, :, 1], rtol=1e-3, atol=1e-5)
    assert not latents[:, :, 0].any()


def test_the_tool_writes_table_and_strips(run, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--images=5", "--draws=2", "--steps=3", f"--out={out}"]
    assert impute.main([str(run), "--task=half", *options]) == 0
    printed = capsys.readouterr().out
    told = json.loads((out / "imputation.json").read_text())
    assert told["images"] == 5
    for name, row in told["methods"].items():
        assert f"{METHODS[name]:26}{row['psnr']:7.2f}" in printed
    with Image.open(out / "imputation.png") as page:
        assert page.size == (6 * 34 - 2, 5 * 34 - 2)
        pixels = np.asarray(page)
    generator = trained.load_generator(run)
    test = images_lib.open_splits(**generator.config.data)["test"]
    first = test.read(np.array([0]))["image"][0, :, :, 0].repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(pixels[:32, :32], first)
    for column in range(2, 6):
        right = pixels[:32, 34 * column + 16 : 34 * column + 32]
        np.testing.assert_array_equal(right, first[:, 16:])
    train = images_lib.open_splits(**generator.config.data)["train"]
    average = train.read(np.arange(train.num_examples))["image"].mean(axis=0)[:, :4, 0]
    left = pixels[:32, 34 * 3 : 34 * 3 + 16 : 4][::4].astype(float)
    np.testing.assert_allclose(left, average, atol=0.51)
    result = {"mse_" + name: np.array([0.1, 0.001]) for name in METHODS}
    result["mse_mean"] = np.array([0.01, 0.001])
    row = impute.table(result)["mean"]
    expected = {"psnr": 25, "standard_error": 5, "gain": 5, "gain_standard_error": 5}
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=half", "--images=1"], "--images=1 must be from 2 to"),
        (["--task=half", "--images=97"], "--images=97: there are 96 test images"),
        (["--task=half", "--draws=0", "--steps=0"], "--draws=0 must be from 1 to"),
        (["--task=half", "--draws=100000000"], "--draws=100000000 must be from 1 to"),
        (["--task=half", "--seed=-1"], "--seed=-1 must be from 0"),
        (["--task=quarter"], "invalid choice: 'quarter'"),
    ],
)
def test_bad_arguments_are_told_before_anything_compiles(
    run, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(impute, "Imputer", None)
    told = refusal(impute.main, [run, f"--out={tmp_path / 'out'}", *arguments], capsys)
    assert message in told
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_made_of_blocks_are_told_before_anything_compiles(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(impute, "Imputer", None)
    kind = inpainting.KINDS["lowres4"]._replace(pool=3)
    monkeypatch.setitem(inpainting.KINDS, "lowres4", kind)
    told = refusal(impute.main, [run, f"--out={tmp_path / 'out'}", "--task=lowres4"], capsys)
    assert "images of 8x8 pixels are not made of blocks of 3x3" in told


def test_draws_at_a_time_are_bounded_by_their_pixels(monkeypatch):
    sizes = []

    def compare(imputer, images, *, names, draws, average):
        sizes.append(len(images) * draws)
        return {"mse": np.asarray(names)}

    monkeypatch.setattr(impute, "compare", compare)
    rows = np.arange(40)
    for side, most in ((8, 256), (64, 64), (256, 8)):
        images, sizes[:] = np.zeros((40, side, side, 1), np.float32), []
        result = impute.impute_all(None, images, rows=rows, draws=8, average=images[0])
        np.testing.assert_array_equal(result["mse"], rows)
        assert set(sizes) == {most}


def test_what_cannot_be_imputed_is_told(tmp_path, capsys):
    (tmp_path / "kept").write_text("")
    arguments = [tmp_path / "run", "--task=half"]
    told = refusal(impute.main, [*arguments, f"--out={tmp_path}"], capsys)
    assert "is there and not an empty folder" in told
    told = refusal(impute.main, [*arguments, f"--out={tmp_path / 'out'}"], capsys)
    assert "is not the directory of a run" in told
    changes = {"generate.label_dropout": 0.0, "generate.guidance.scale": 1.0, "generate.sweep": ()}
    generator_runs.make(tmp_path / "run", **changes)
    told = refusal(impute.main, [*arguments, f"--out={tmp_path / 'out'}"], capsys)
    assert "trained with generate.label_dropout=0" in told
