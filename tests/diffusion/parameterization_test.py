"""Frames of diffusion against the papers' own formulas, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from functa.diffusion import parameterization

EDM = dict(name="edm", prediction="edm", distribution="normal", mean=-1.2, std=1.2)
FLOW = dict(name="flow", prediction="velocity", distribution="logistic", mean=0.0, std=1.0)
SIGMAS = np.array([1e-3, 0.1, 0.7, 3.0, 80.0])


def example(count, seed=0):
    """(latents, noise) [count, 2, 1, 3]."""
    return np.random.default_rng(seed).normal(size=(2, count, 2, 1, 3)).astype(np.float32)


def column(values):
    return np.asarray(values)[:, None, None, None]


def close(got, expected, tolerance=2e-5):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def drawn(sigma, noise):
    labels = jnp.arange(len(noise), dtype=jnp.int32)
    return parameterization.Draw(jnp.asarray(sigma, jnp.float32), jnp.asarray(noise), labels)


def spy(said):
    """A network that says `said`, and the list of what it was asked."""
    asked = []

    def network(*arguments):
        asked.append(arguments)
        return jnp.asarray(said)

    return network, asked


def slow_edm(latents, noise, sigma, said):
    """Karras et al. 2022, table 1 and equations 7 and 8, for sigma_data = 1: (input, condition, denoised, loss)."""
    noisy = latents + sigma * noise
    c_skip = 1 / (sigma**2 + 1)
    c_out = sigma / np.sqrt(1 + sigma**2)
    c_in = 1 / np.sqrt(1 + sigma**2)
    denoised = c_skip * noisy + c_out * said
    weight = (sigma**2 + 1) / sigma**2
    return c_in * noisy, 0.25 * np.log(sigma), denoised, weight * np.mean((denoised - latents) ** 2)


def slow_flow(latents, noise, sigma, said):
    """Rectified flow in its own words: x_t, t and the velocity noise - latents."""
    t = sigma / (1 + sigma)
    x_t = (1 - t) * latents + t * noise
    return x_t, t, x_t - t * said, np.mean((said - (noise - latents)) ** 2)


@pytest.mark.parametrize(("settings", "slow"), [(EDM, slow_edm), (FLOW, slow_flow)])
def test_frames_are_those_of_their_papers(settings, slow):
    latents, noise = example(len(SIGMAS))
    said = example(len(SIGMAS), seed=1)[0]
    frame = parameterization.make_frame(**settings)
    network, asked = spy(said)
    losses = parameterization.losses(frame, network, latents, drawn(SIGMAS, noise))
    noisy = parameterization.add_noise(latents, noise, jnp.asarray(SIGMAS, jnp.float32))
    denoise = parameterization.make_denoise(frame, network)
    labels = jnp.arange(len(SIGMAS), dtype=jnp.int32)
    denoised = denoise(noisy, jnp.asarray(SIGMAS, jnp.float32), labels)
    for inputs, condition, labels in asked:  # of the loss and of denoise alike
        np.testing.assert_array_equal(labels, np.arange(len(SIGMAS)))
        for number, sigma in enumerate(SIGMAS):
            arguments = (array[number].astype(np.float64) for array in (latents, noise))
            expected = slow(*arguments, sigma, said[number].astype(np.float64))
            got = inputs[number], condition[number], denoised[number]
            for value, one in zip(got, expected, strict=False):
                close(value, one)
            # at the smallest sigma EDM's error is that of said / sigma, a difference of two sums
            close(losses[number], expected[3], 1e-4)


@pytest.mark.parametrize("frame", parameterization.FRAMES)
@pytest.mark.parametrize("prediction", parameterization.PREDICTIONS)
def test_what_the_network_should_say_denoises_exactly(frame, prediction):
    frame = parameterization.make_frame(**EDM | {"name": frame, "prediction": prediction})
    latents, noise = example(len(SIGMAS))
    sigma = column(SIGMAS)
    radius = np.sqrt(1 + sigma**2)
    targets = {
        "edm": (sigma * latents - noise) / radius,
        "v": (noise - sigma * latents) / radius,
        "x": latents + 0 * sigma,
        "epsilon": noise + 0 * sigma,
        "velocity": noise - latents + 0 * sigma,
    }
    network, _ = spy(targets[prediction].astype(np.float32))
    batch = drawn(SIGMAS, noise)
    close(parameterization.losses(frame, network, latents, batch), np.zeros(len(SIGMAS)), 1e-9)
    noisy = parameterization.add_noise(latents, noise, batch.sigma)
    denoised = parameterization.make_denoise(frame, network)(noisy, batch.sigma, batch.labels)
    # "epsilon" subtracts sigma * noise from the noisy latents: float32's rounding of 80
    close(denoised, latents, 3e-5)


@pytest.mark.parametrize("name", parameterization.FRAMES)
@pytest.mark.parametrize("prediction", parameterization.PREDICTIONS)
def test_a_prediction_leaves_the_weight_of_errors_to_the_frame(name, prediction):
    frame = parameterization.make_frame(**EDM | {"name": name, "prediction": prediction})
    sigmas = np.array([0.1, 0.7, 3.0, 10.0])
    latents, noise = example(len(sigmas))
    said = example(len(sigmas), seed=1)[0]
    batch = drawn(sigmas, noise)
    network, _ = spy(said)
    losses = parameterization.losses(frame, network, latents, batch)
    noisy = parameterization.add_noise(latents, noise, batch.sigma)
    denoised = parameterization.make_denoise(frame, network)(noisy, batch.sigma, batch.labels)
    errors = np.mean(np.square(np.asarray(denoised) - latents), axis=(1, 2, 3))
    weights = {"edm": (sigmas**2 + 1) / sigmas**2, "flow": ((1 + sigmas) / sigmas) ** 2}
    close(losses, weights[name] * errors, 2e-4)


@pytest.mark.parametrize("prediction", parameterization.PREDICTIONS)
def test_weights_are_bounded_at_every_level(prediction):
    sigma = jnp.asarray([1e-38, 1e-8, 1.0, 1e8], jnp.float32)
    for name in parameterization.FRAMES:
        frame = parameterization.make_frame(**FLOW | {"name": name, "prediction": prediction})
        weight = np.asarray(frame.weight(sigma))
        assert np.all(weight > 0)
        assert np.all(weight <= parameterization.LARGEST_WEIGHT)
    x = parameterization.make_frame(**FLOW | {"prediction": "x"})
    assert x.weight(sigma)[0] == parameterization.LARGEST_WEIGHT


@pytest.mark.parametrize(
    ("changes", "of_sigma"),
    [
        # EDM: log sigma is normal; rectified flow: logit t is normal, or t is uniform; a shift of t
        ({}, lambda s: stats.norm.cdf(np.log(s), loc=-1.2, scale=1.2)),
        ({"mean": 0.5, "std": 0.3}, lambda s: stats.norm.cdf(np.log(s), loc=0.5, scale=0.3)),
        (FLOW, lambda s: s / (1 + s)),
        (FLOW | {"mean": np.log(3.0)}, lambda s: (s / 3) / (1 + s / 3)),
        (FLOW | {"distribution": "normal"}, lambda s: stats.norm.cdf(np.log(s))),
    ],
)
def test_levels_have_the_distribution_of_their_paper(changes, of_sigma):
    frame = parameterization.make_frame(**EDM | changes)
    sigma = frame.draw_sigma(jax.random.key(0), 4000)
    assert sigma.dtype == jnp.float32
    assert stats.kstest(of_sigma(np.asarray(sigma, np.float64)), "uniform").pvalue > 0.01


def test_a_draw_is_a_function_of_the_key_and_drops_labels_at_its_rate():
    frame = parameterization.make_frame(**EDM)
    latents = np.zeros((4000, 1, 1, 2), np.float32)
    labels = jnp.arange(4000, dtype=jnp.int32) % 10

    def draw(seed, label_dropout):
        key = jax.random.key(seed)
        return parameterization.draw(
            frame, key, latents, labels, null_class=10, label_dropout=label_dropout
        )

    first, again, other = draw(0, 0.2), draw(0, 0.2), draw(1, 0.2)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.mean(np.asarray(one) == np.asarray(three)) < 0.9
    dropped = np.asarray(first.labels) == 10
    assert abs(dropped.mean() - 0.2) < 0.03
    np.testing.assert_array_equal(first.labels[~dropped], labels[~dropped])
    np.testing.assert_array_equal(draw(0, 0.0).labels, labels)
    assert stats.kstest(np.asarray(first.noise).ravel(), "norm").pvalue > 0.01
    # which label is dropped has nothing to do with how much noise there is
    log_sigma = np.log(np.asarray(first.sigma))
    assert abs(np.corrcoef(log_sigma, dropped)[0, 1]) < 0.05
    assert abs(np.corrcoef(log_sigma, first.noise[:, 0, 0, 0])[0, 1]) < 0.05


def test_velocity_is_the_slope_of_the_path():
    latents, noise = example(3)
    sigma = np.float32(0.7)
    close(parameterization.velocity(latents + sigma * noise, latents, sigma), noise)
    t = sigma / (1 + sigma)
    close(parameterization.velocity((1 - t) * latents + t * noise, latents, t), noise - latents)


def test_impossible_values_are_named_all_at_once():
    wrong = dict(name="ddpm", prediction="y", distribution="cauchy", mean=np.nan, std=0.0)
    with pytest.raises(ValueError, match="known are edm, flow; .*'y'.*'cauchy'.*mean=nan.*std=0.0"):
        parameterization.make_frame(**wrong)
    with pytest.raises(TypeError, match="sigma_data"):
        parameterization.make_frame(**EDM, sigma_data=0.5)
