"""Trained generators: interpolation, inversion and changed sampling settings."""

import numpy as np
import pytest

from functa.data.functaset.format import float32_latents
from functa.pipeline.load import load_generator
from tests.support import generator_runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load_generator(generator_runs.make(tmp_path_factory.mktemp("generator") / "run"))


def test_interpolation_of_samples_includes_both_samples(trained):
    numbers, labels = np.array([3, 14], np.int32), np.array([3, 4], np.int32)
    noisy = trained.initial_noise(seed=0, numbers=numbers)
    latents = trained.interpolate(noisy, labels, count=5)
    ends = trained.sample(seed=0, numbers=numbers, labels=labels, batch_size=2)
    np.testing.assert_allclose(latents[[0, -1]], ends, rtol=1e-4, atol=1e-4)
    steps = np.linalg.norm((latents[1:] - latents[:-1]).reshape(4, -1), axis=1)
    assert steps.max() < np.linalg.norm(ends[1] - ends[0])


def test_interpolation_of_test_examples_includes_both_examples(trained):
    records = trained.functaset.source("test").read(np.array([9, 2]))
    latents, labels = float32_latents(records), records["label"]
    fine = trained.with_sampling(steps=60)
    points = fine.interpolate(fine.invert(latents, labels), labels, count=3)
    np.testing.assert_allclose(points[[0, -1]], latents, atol=0.1)


def test_trajectory_ends_near_the_samples(trained):
    batch = dict(seed=0, numbers=np.arange(5, dtype=np.int32), labels=np.arange(5), batch_size=3)
    trajectory, latents = trained.sample_trajectory(**batch), trained.sample(**batch)
    assert trajectory.shape == (trained.generator.sampling.steps, *latents.shape)
    np.testing.assert_allclose(trajectory[-1], latents, rtol=1e-3, atol=1e-3)
    assert np.abs(trajectory[0] - latents).max() > 1e-2


def test_with_sampling_keeps_what_is_not_changed(trained):
    sampling = trained.with_sampling(steps=7, guidance_scale=2.0).generator.sampling
    assert (sampling.steps, sampling.guidance.scale) == (7, 2.0)
    assert sampling.settings["solver"] == trained.generator.sampling.settings["solver"]
    assert trained.with_sampling(solver="euler").generator.sampling.settings["solver"] == {
        "name": "euler"
    }
