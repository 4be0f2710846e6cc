"""Parameterizations against the formulas of their papers, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from functa.diffusion import parameterization
from functa.diffusion.parameterization import (
    MAX_WEIGHT,
    PARAMETERIZATIONS,
    PREDICTIONS,
    NoisyBatch,
    make_parameterization,
)

EDM = dict(name="edm", prediction="edm", distribution="normal", mean=-1.2, std=1.2)
FLOW = dict(name="flow", prediction="velocity", distribution="logistic", mean=0.0, std=1.0)
SIGMAS = np.array([1e-3, 0.1, 0.7, 3.0, 80.0])


def latents_and_noise(count, seed=0):
    """Two arrays [count, 2, 1, 3]."""
    return np.random.default_rng(seed).normal(size=(2, count, 2, 1, 3)).astype(np.float32)


def assert_close(values, expected, tolerance=2e-5):
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


def noisy_batch(sigma, noise):
    labels = jnp.arange(len(noise), dtype=jnp.int32)
    return NoisyBatch(jnp.asarray(sigma, jnp.float32), jnp.asarray(noise), labels)


def constant_network(output):
    """A network with this output, and the list of its inputs."""
    calls = []

    def network(*inputs):
        calls.append(inputs)
        return jnp.asarray(output)

    return network, calls


def edm_reference(latents, noise, sigma, output):
    """(input, condition, denoised, loss): Karras et al. 2022, table 1 and equations 7 and 8."""
    noisy = latents + sigma * noise
    c_skip, c_out = 1 / (sigma**2 + 1), sigma / np.sqrt(1 + sigma**2)
    denoised = c_skip * noisy + c_out * output
    loss = (sigma**2 + 1) / sigma**2 * np.mean((denoised - latents) ** 2)
    return noisy / np.sqrt(1 + sigma**2), 0.25 * np.log(sigma), denoised, loss


def flow_reference(latents, noise, sigma, output):
    """(input, condition, denoised, loss) of rectified flow in x_t, t and velocity."""
    t = sigma / (1 + sigma)
    x_t = (1 - t) * latents + t * noise
    return x_t, t, x_t - t * output, np.mean((output - (noise - latents)) ** 2)


@pytest.mark.parametrize(("settings", "reference"), [(EDM, edm_reference), (FLOW, flow_reference)])
def test_network_inputs_denoiser_and_loss_match_the_papers(settings, reference):
    latents, noise = latents_and_noise(len(SIGMAS))
    output = latents_and_noise(len(SIGMAS), seed=1)[0]
    made = make_parameterization(**settings)
    network, calls = constant_network(output)
    batch = noisy_batch(SIGMAS, noise)
    losses = parameterization.losses(made, network, latents, batch)
    noisy = parameterization.add_noise(latents, noise, batch.sigma)
    denoised = parameterization.make_denoiser(made, network)(noisy, batch.sigma, batch.labels)
    assert len(calls) == 2
    for inputs, condition, labels in calls:
        np.testing.assert_array_equal(labels, batch.labels)
        for k, sigma in enumerate(SIGMAS):
            example = (array[k].astype(np.float64) for array in (latents, noise))
            expected = reference(*example, sigma, output[k].astype(np.float64))
            for value, want in zip((inputs[k], condition[k], denoised[k]), expected, strict=False):
                assert_close(value, want)
            # float32: at the smallest sigma the EDM error is a difference of two large sums
            assert_close(losses[k], expected[3], 1e-4)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_exact_prediction_has_zero_loss_and_denoises_exactly(name, prediction):
    made = make_parameterization(**EDM | {"name": name, "prediction": prediction})
    latents, noise = latents_and_noise(len(SIGMAS))
    sigma = SIGMAS[:, None, None, None]
    radius = np.sqrt(1 + sigma**2)
    targets = {
        "edm": (sigma * latents - noise) / radius,
        "v": (noise - sigma * latents) / radius,
        "x": latents,
        "epsilon": noise,
        "velocity": noise - latents,
    }
    network, _ = constant_network(targets[prediction].astype(np.float32))
    batch = noisy_batch(SIGMAS, noise)
    losses = parameterization.losses(made, network, latents, batch)
    assert_close(losses, np.zeros(len(SIGMAS)), 1e-9)
    noisy = parameterization.add_noise(latents, noise, batch.sigma)
    denoised = parameterization.make_denoiser(made, network)(noisy, batch.sigma, batch.labels)
    assert_close(denoised, latents, 3e-5)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prediction_does_not_change_the_weight_of_latent_errors(name, prediction):
    made = make_parameterization(**EDM | {"name": name, "prediction": prediction})
    sigmas = np.array([0.1, 0.7, 3.0, 10.0])
    latents, noise = latents_and_noise(len(sigmas))
    network, _ = constant_network(latents_and_noise(len(sigmas), seed=1)[0])
    batch = noisy_batch(sigmas, noise)
    losses = parameterization.losses(made, network, latents, batch)
    noisy = parameterization.add_noise(latents, noise, batch.sigma)
    denoised = parameterization.make_denoiser(made, network)(noisy, batch.sigma, batch.labels)
    errors = np.mean(np.square(np.asarray(denoised) - latents), axis=(1, 2, 3))
    weights = {"edm": (sigmas**2 + 1) / sigmas**2, "flow": ((1 + sigmas) / sigmas) ** 2}
    assert_close(losses, weights[name] * errors, 2e-4)


def test_weights_are_positive_and_bounded():
    sigma = jnp.asarray([1e-38, 1e-8, 1.0, 1e8], jnp.float32)
    for name in PARAMETERIZATIONS:
        for prediction in PREDICTIONS:
            made = make_parameterization(**FLOW | {"name": name, "prediction": prediction})
            weight = np.asarray(made.weight(sigma))
            assert np.all((weight > 0) & (weight <= MAX_WEIGHT))
    assert make_parameterization(**FLOW | {"prediction": "x"}).weight(sigma)[0] == MAX_WEIGHT


@pytest.mark.parametrize(
    ("settings", "distribution_function"),
    [
        # log sigma is normal in EDM; in rectified flow logit t is normal, or t is uniform, or shifted
        (EDM, lambda s: stats.norm.cdf(np.log(s), loc=-1.2, scale=1.2)),
        (FLOW, lambda s: s / (1 + s)),
        (FLOW | {"mean": np.log(3.0)}, lambda s: (s / 3) / (1 + s / 3)),
        (FLOW | {"distribution": "normal"}, lambda s: stats.norm.cdf(np.log(s))),
    ],
)
def test_training_sigmas_have_the_distribution_of_the_paper(settings, distribution_function):
    sigma = make_parameterization(**settings).sample_sigma(jax.random.key(0), 4000)
    assert sigma.dtype == jnp.float32
    uniform = distribution_function(np.asarray(sigma, np.float64))
    assert stats.kstest(uniform, "uniform").pvalue > 0.01


def test_noise_and_dropped_labels_are_independent_functions_of_the_key():
    made = make_parameterization(**EDM)
    latents = np.zeros((4000, 1, 1, 2), np.float32)
    labels = jnp.arange(4000, dtype=jnp.int32) % 10

    def sample(seed, label_dropout):
        return parameterization.sample_noise_and_labels(
            made,
            jax.random.key(seed),
            latents,
            labels,
            null_class=10,
            label_dropout=label_dropout,
        )

    first, again, other = sample(0, 0.2), sample(0, 0.2), sample(1, 0.2)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.mean(np.asarray(one) == np.asarray(three)) < 0.9
    is_dropped = np.asarray(first.labels) == 10
    assert abs(is_dropped.mean() - 0.2) < 0.03
    np.testing.assert_array_equal(first.labels[~is_dropped], labels[~is_dropped])
    np.testing.assert_array_equal(sample(0, 0.0).labels, labels)
    assert stats.kstest(np.asarray(first.noise).ravel(), "norm").pvalue > 0.01
    log_sigma = np.log(np.asarray(first.sigma))
    for values in (is_dropped, first.noise[:, 0, 0, 0]):
        assert abs(np.corrcoef(log_sigma, values)[0, 1]) < 0.05


def test_velocity_is_the_slope_of_the_path():
    latents, noise = latents_and_noise(3)
    sigma = np.float32(0.7)
    assert_close(parameterization.velocity(latents + sigma * noise, latents, sigma), noise)
    t = sigma / (1 + sigma)
    x_t = (1 - t) * latents + t * noise
    assert_close(parameterization.velocity(x_t, latents, t), noise - latents)


def test_all_invalid_settings_are_named():
    invalid = dict(name="ddpm", prediction="y", distribution="cauchy", mean=np.nan, std=0.0)
    with pytest.raises(ValueError, match=r"(?s)name=.*prediction=.*distribution=.*mean=.*std="):
        make_parameterization(**invalid)
    with pytest.raises(TypeError, match="sigma_data"):
        make_parameterization(**EDM, sigma_data=0.5)
