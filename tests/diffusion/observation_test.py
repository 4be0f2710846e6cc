"""Degradations: what they show, what they keep, and the error on the rest."""

import numpy as np
import pytest

from functa.diffusion.observation import (
    DEGRADATIONS,
    degrade,
    insert_observed,
    observe,
    unobserved_mse,
)


def random_images(shape=(3, 8, 8, 1)):
    return np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.mark.parametrize(("name", "visible_pixels"), [("half", 32), ("random10", 6)])
def test_masks_hide_pixels_and_the_rest_is_kept(name, visible_pixels):
    degradation, images = DEGRADATIONS[name], random_images()
    observation = observe(degradation, images, [(0, k) for k in range(3)])
    mask = np.asarray(observation.mask)
    assert mask.sum((1, 2, 3)).tolist() == [visible_pixels] * 3
    np.testing.assert_array_equal(observation.values, mask * images)
    reconstructions = np.where(mask == 1, 7, images + 0.1)
    inserted = insert_observed(degradation, observation, reconstructions)
    np.testing.assert_array_equal(inserted[mask == 1], images[mask == 1])
    assert inserted.max() <= 1
    hidden = np.square(np.clip(images + 0.1, 0, 1) - images)[mask == 0].reshape(3, -1).mean(1)
    wrong_where_visible = inserted + np.where(mask == 1, 100, 0)
    mse = unobserved_mse(degradation, observation, wrong_where_visible, images)
    np.testing.assert_allclose(mse, hidden, rtol=1e-3)
    if name == "half":
        assert not mask[:, :, :4].any()
    else:
        assert (mask[0] != mask[1]).any()


def test_lowres_shows_block_means():
    observation = observe(DEGRADATIONS["lowres4"], random_images(), [()] * 3)
    means = random_images().reshape(3, 2, 4, 2, 4, 1).mean((2, 4))
    expected = means.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(observation.values, expected, rtol=1e-5)
    again = degrade(observation.values, observation.mask, 4)
    np.testing.assert_allclose(again, expected, rtol=1e-5)  # a projection
    with pytest.raises(ValueError, match="6x8"):
        observe(DEGRADATIONS["lowres4"], random_images((1, 6, 8, 1)), [()])


def test_noise_depends_on_the_seed_of_the_image_and_all_pixels_are_scored():
    degradation, images = DEGRADATIONS["noisy"], random_images((2, 64, 64, 1))
    observation = observe(degradation, images, [(1,), (2,)])
    assert (observation.values - images).std() == pytest.approx(0.2, rel=0.05)
    second = observe(degradation, images[1:], [(2,)])
    np.testing.assert_array_equal(second.values[0], observation.values[1])
    reconstructions = images * 0.5
    np.testing.assert_array_equal(
        insert_observed(degradation, observation, reconstructions), reconstructions
    )
    mse = unobserved_mse(degradation, observation, reconstructions, images)
    np.testing.assert_allclose(mse, np.square(reconstructions - images).mean((1, 2, 3)), rtol=1e-5)
