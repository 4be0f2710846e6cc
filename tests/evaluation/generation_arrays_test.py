"""What the report shows of a generator: a random one's, against the functions that make it."""

import numpy as np
import pytest

from functa.data import images as images_lib
from functa.diffusion import (
    inpainter,
    inpainting,
    sharded_sampling,
)
from functa.evaluation import generation_arrays
from functa.fields import psnr
from functa.pipeline import load
from functa.report import generation_sections
from tests.support import generator_runs


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return load.load_generator(generator_runs.make(tmp_path_factory.mktemp("exhibits") / "run"))


def test_hidden_halves_are_imputed(generator):
    sources = images_lib.open_splits(**generator.config.data)
    arrays = generation_arrays.imputed(generator, sources)
    originals = arrays["imputed_original"]
    last = sources["test"].read(np.array([sources["test"].num_examples - 1]))["image"]
    np.testing.assert_array_equal(originals[-1], last[0] / np.float32(255))
    for method in ("without", "draw", "mean", "average"):
        made = arrays[f"imputed_{method}"]
        np.testing.assert_array_equal(made[:, :, 4:], originals[:, :, 4:])  # what was seen
        hidden = np.square(made - originals)[:, :, :4].mean((1, 2, 3))
        np.testing.assert_allclose(arrays[f"imputed_mse_{method}"], hidden, rtol=1e-4)
    assert not arrays["imputed_seen"][:, :, :4].any()
    (section,) = generation_sections.sections(arrays)
    assert section.title == "The other half"
    assert section.body.count("<img") == 8 * 6
    decibels = float(psnr.psnr(arrays["imputed_mse_mean"][3]))
    assert f"mean of draws with prior, {decibels:.1f} dB" in section.body


def test_of_large_images_fewer_are_imputed(generator, monkeypatch):
    monkeypatch.setattr(generation_arrays, "_IMPUTED_PIXELS", 9 * 64)
    monkeypatch.setattr(inpainter, "_AVERAGED_PIXELS", 2 * 64)
    sources = images_lib.open_splits(**generator.config.data)
    arrays = generation_arrays.imputed(generator, sources)
    assert arrays["imputed_mean"].shape == (3, 8, 8, 1)
    two = sources["train"].read(np.arange(2))["image"].mean(0) / 255
    np.testing.assert_allclose(arrays["imputed_average"][0, :, :4], two[:, :4], atol=1e-6)


def test_a_draw_is_the_same_however_many_there_are(generator):
    made = inpainter.Imputer(generator, inpainting.KINDS["half"], steps=3, seed=0)
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
    seen = inpainting.observe(inpainting.KINDS["half"], images, [(0, 0), (0, 1)])
    names = np.array([5, 2_147_482])
    two, three = (made.draws(seen, names=names, count=count) for count in (2, 3))
    np.testing.assert_allclose(two, three[:, :2], atol=1e-3)
    assert np.abs(three[:, 2] - three[:, 1]).max() > 0.01
    for wrong in ({"names": names + 1, "count": 2}, {"names": names, "count": 1001}):
        with pytest.raises(ValueError, match="at most 1000 draws, of images 0 to 2147482"):
            made.draws(seen, **wrong)


def test_without_an_unknown_class_nothing_is_imputed(generator):
    config = generator.config.copy_and_resolve_references()
    config.generate.label_dropout = 0.0
    assert generation_arrays.imputed(generator._replace(config=config), {}) == {}


def test_samples_are_decoded_at_several_resolutions(generator):
    latents = np.random.default_rng(0).normal(size=(6, *generator.field.latent_shape))
    latents = latents.astype(np.float32)
    arrays = generation_arrays.ladder(generator, latents)
    sides = {name: array.shape[:3] for name, array in arrays.items()}
    assert sides == {f"ladder_{scale}x": (4, 8 * scale, 8 * scale) for scale in (1, 2, 4, 8)}
    whole = sharded_sampling.make_decoder(
        generator.field, generator.field_params, batch_size=4, scale=4
    )
    np.testing.assert_allclose(arrays["ladder_4x"], whole(latents[:4]), atol=1e-5)
    (section,) = generation_sections.sections(arrays)
    assert section.title == "Samples at any resolution"
    assert section.body.count("<img") == 16
    assert "8×: 64 × 64 pixels" in section.body
