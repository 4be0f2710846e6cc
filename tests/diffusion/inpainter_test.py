"""Inpainter: what the samples of an image depend on."""

import numpy as np
import pytest

from functa.diffusion.inpainter import MAX_SAMPLES, Inpainter
from functa.diffusion.observation import DEGRADATIONS, observe
from functa.pipeline.load import load_generator
from tests.support import generator_runs


def test_a_sample_does_not_depend_on_the_number_of_samples(tmp_path):
    trained = load_generator(generator_runs.make(tmp_path / "run"))
    half = Inpainter(trained, DEGRADATIONS["half"], steps=3, seed=0)
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    observation = observe(DEGRADATIONS["half"], images, [(0, 0), (0, 1)])
    image_ids = np.array([5, 2**31 // MAX_SAMPLES - 1])
    two, three = (half.sample(observation, image_ids=image_ids, count=count) for count in (2, 3))
    np.testing.assert_allclose(two, three[:, :2], atol=1e-3)
    assert np.abs(three[:, 2] - three[:, 1]).max() > 0.01
    for invalid in (
        {"image_ids": image_ids + 1, "count": 2},
        {"image_ids": image_ids, "count": 1001},
    ):
        with pytest.raises(ValueError, match=str(MAX_SAMPLES)):
            half.sample(observation, **invalid)
