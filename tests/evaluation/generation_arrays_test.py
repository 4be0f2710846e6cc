"""Report arrays of a random generator: inpainted images and samples at several resolutions."""

import numpy as np
import pytest

from functa.data import images as images_lib
from functa.diffusion import inpainter, inpainting, sharded_sampling
from functa.evaluation import generation_arrays
from functa.pipeline import load
from tests.support import generator_runs


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return load.load_generator(generator_runs.make(tmp_path_factory.mktemp("report") / "run"))


def test_hidden_halves_are_inpainted(generator):
    sources = images_lib.open_splits(**generator.config.data)
    arrays = generation_arrays.inpainting_arrays(generator, sources)
    originals = arrays["inpainting_original"]
    last = sources["test"].read(np.array([sources["test"].num_examples - 1]))["image"]
    np.testing.assert_array_equal(originals[-1], last[0] / np.float32(255))
    for method in inpainting.METHODS:
        images = arrays[f"inpainting_{method}"]
        np.testing.assert_array_equal(images[:, :, 4:], originals[:, :, 4:])  # observed
        hidden = np.square(images - originals)[:, :, :4].mean((1, 2, 3))
        np.testing.assert_allclose(arrays[f"inpainting_mse_{method}"], hidden, rtol=1e-4)
    observed = arrays["inpainting_observed"]
    np.testing.assert_array_equal(observed[:, :, 4:], originals[:, :, 4:])
    assert not observed[:, :, :4].any()


def test_fewer_images_are_inpainted_if_they_are_large(generator, monkeypatch):
    monkeypatch.setattr(generation_arrays, "MAX_PIXELS", 9 * 64)
    monkeypatch.setattr(inpainter, "_AVERAGED_PIXELS", 2 * 64)
    sources = images_lib.open_splits(**generator.config.data)
    arrays = generation_arrays.inpainting_arrays(generator, sources)
    assert arrays["inpainting_mean"].shape == (3, 8, 8, 1)
    mean = sources["train"].read(np.arange(2))["image"].mean(0) / 255
    np.testing.assert_allclose(arrays["inpainting_average"][0, :, :4], mean[:, :4], atol=1e-6)


def test_a_draw_does_not_depend_on_the_number_of_draws(generator):
    imputer = inpainter.Imputer(generator, inpainting.KINDS["half"], steps=3, seed=0)
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    observation = inpainting.observe(inpainting.KINDS["half"], images, [(0, 0), (0, 1)])
    names = np.array([5, 2_147_482])
    two, three = (imputer.draws(observation, names=names, count=count) for count in (2, 3))
    np.testing.assert_allclose(two, three[:, :2], atol=1e-3)
    assert np.abs(three[:, 2] - three[:, 1]).max() > 0.01
    for wrong in ({"names": names + 1, "count": 2}, {"names": names, "count": 1001}):
        with pytest.raises(ValueError, match="1000 draws"):
            imputer.draws(observation, **wrong)


def test_a_generator_without_label_dropout_has_no_inpainting_arrays(generator):
    config = generator.config.copy_and_resolve_references()
    config.generate.label_dropout = 0.0
    assert generation_arrays.inpainting_arrays(generator._replace(config=config), {}) == {}


def test_samples_are_decoded_at_several_resolutions(generator):
    latents = np.random.default_rng(0).normal(size=(6, *generator.field.latent_shape))
    latents = latents.astype(np.float32)
    arrays = generation_arrays.resolution_arrays(generator, latents)
    sides = {name: array.shape[:3] for name, array in arrays.items()}
    assert sides == {f"samples_{scale}x": (4, 8 * scale, 8 * scale) for scale in (1, 2, 4, 8)}
    decode = sharded_sampling.make_decoder(
        generator.field, generator.field_params, batch_size=4, scale=4
    )
    np.testing.assert_allclose(arrays["samples_4x"], decode(latents[:4]), atol=1e-5)
