"""Report arrays of a random generator: inpainted images and samples at several resolutions."""

import dataclasses

import numpy as np
import pytest

from functa.data import images as images_lib
from functa.diffusion import inpainter
from functa.evaluation import generation_arrays
from functa.fields.decoder import make_decoder
from functa.pipeline import load
from functa.runtime import config as config_lib
from tests.support import generator_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def trained(run):
    return load.load_generator(run)


@pytest.fixture(scope="module")
def sources(run):
    return images_lib.open_splits(**config_lib.load(run).data)


def test_hidden_halves_are_inpainted(trained, sources):
    arrays = generation_arrays.inpainting_arrays(trained, sources, seed=0)
    originals = arrays["inpainting_original"]
    last = sources["test"].read(np.array([sources["test"].num_examples - 1]))["image"]
    np.testing.assert_array_equal(originals[-1], last[0] / np.float32(255))
    for method in inpainter.METHODS:
        images = arrays[f"inpainting_{method}"]
        np.testing.assert_array_equal(images[:, :, 4:], originals[:, :, 4:])  # observed
        hidden = np.square(images - originals)[:, :, :4].mean((1, 2, 3))
        np.testing.assert_allclose(arrays[f"inpainting_mse_{method}"], hidden, rtol=1e-4)
    observed = arrays["inpainting_observed"]
    np.testing.assert_array_equal(observed[:, :, 4:], originals[:, :, 4:])
    assert not observed[:, :, :4].any()


def test_fewer_images_are_inpainted_if_they_are_large(trained, sources, monkeypatch):
    monkeypatch.setattr(generation_arrays, "MAX_PIXELS", 9 * 64)
    monkeypatch.setattr(inpainter, "_MEAN_IMAGE_PIXELS", 2 * 64)
    arrays = generation_arrays.inpainting_arrays(trained, sources, seed=0)
    assert arrays["inpainting_sample_mean"].shape == (3, 8, 8, 1)
    mean = sources["train"].read(np.arange(2))["image"].mean(0) / 255
    np.testing.assert_allclose(arrays["inpainting_mean_image"][0, :, :4], mean[:, :4], atol=1e-6)


def test_a_generator_without_label_dropout_has_no_inpainting_arrays(trained):
    generator = dataclasses.replace(trained.generator, label_dropout=0.0)
    trained = dataclasses.replace(trained, generator=generator)
    assert generation_arrays.inpainting_arrays(trained, {}, seed=0) == {}


def test_samples_are_decoded_at_several_resolutions(trained):
    latents = np.random.default_rng(0).normal(size=(6, *trained.field.latent_shape))
    latents = latents.astype(np.float32)
    arrays = generation_arrays.resolution_arrays(trained, latents)
    sides = {name: array.shape[:3] for name, array in arrays.items()}
    assert sides == {f"samples_{scale}x": (4, 8 * scale, 8 * scale) for scale in (1, 2, 4, 8)}
    decode = make_decoder(trained.field, trained.field_params, batch_size=4, scale=4)
    np.testing.assert_allclose(arrays["samples_4x"], decode(latents[:4]), atol=1e-5)
