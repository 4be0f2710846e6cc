"""Answers of the explore page, without the page, for a run with a random field and generator."""

import jax
import numpy as np
import pytest

from functa.explore.session import Example, Sampling, Session
from functa.runtime.errors import UserError
from tests.support import generator_runs

SAMPLING = Sampling(guidance=1.5, steps=4, solver="heun")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)


@pytest.fixture(scope="module")
def session(run):
    return Session(run, data_dir=None)


def ignore_progress(progress):
    del progress


def test_pages_of_a_class_contain_all_its_records_once(session):
    source = session._records["train"]
    labels = source.read(np.arange(session.splits["train"]))["label"]
    start, captions, seen = 0, [], []
    while start is not None:
        examples, start = session.browse("train", start=start, count=7, label=3)
        assert all(example.label == 3 for example in examples)
        captions += [example.caption for example in examples]
        seen += [example.latents for example in examples]
    assert len(captions) == len(set(captions)) == np.sum(labels == 3) > 7
    expected = source.read(np.flatnonzero(labels == 3))["latents"]
    np.testing.assert_array_equal(np.stack(seen), expected.astype(np.float32))


def test_records_come_with_the_images_they_were_encoded_from(session):
    examples, _ = session.browse("test", start=0, count=8, label=None)
    decoded = session.decode(np.stack([example.latents for example in examples]), scale=1)
    assert decoded.shape == (8, *session.field.image_shape)
    for example in examples:
        assert example.original.shape == session.field.image_shape
        assert example.original.dtype == np.uint8
    assert session.images_problem == ""


def test_unknown_rows_are_rejected(session):
    with pytest.raises(UserError):
        session.browse("test", start=10**6, count=8, label=None)


@pytest.mark.parametrize("scale", [1, 3])
def test_decoded_images_are_values_of_the_field(session, scale):
    latents = np.random.default_rng(0).normal(size=(3, *session.field.latent_shape))
    latents = latents.astype(np.float32)
    h, w, _ = session.field.image_shape
    values = session.field(session._params["field"], latents, (scale * h, scale * w))
    decoded = session.decode(latents, scale=scale)
    np.testing.assert_allclose(decoded, np.clip(values, 0, 1), atol=1e-6)


def test_enlarged_originals_have_the_requested_size(session):
    (example,), _ = session.browse("test", start=0, count=1, label=None)
    enlarged = session.enlarge(example, scale=4)
    h, w, c = session.field.image_shape
    assert enlarged.shape == (4 * h, 4 * w, c)
    small = jax.image.resize(enlarged, (h, w, c), "linear")
    assert np.abs(small - example.original / np.float32(255)).mean() < 0.1


def test_samples_depend_on_seed_number_and_label_only(session):
    labels = [number % 10 for number in range(12)]
    all_samples = session.sample(labels, SAMPLING, seed=1, progress=ignore_progress)
    some = session.sample(labels[:3], SAMPLING, seed=1, progress=ignore_progress)
    for one, other in zip(all_samples, some, strict=False):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)
    other_seed = session.sample(labels[:1], SAMPLING, seed=2, progress=ignore_progress)
    assert np.abs(other_seed[0].latents - some[0].latents).max() > 1e-3


def test_impossible_sampling_is_rejected(session):
    with pytest.raises(UserError):
        session.sample([0], SAMPLING._replace(steps=0), seed=0, progress=ignore_progress)


def test_interpolation_starts_and_ends_at_the_samples(session):
    first, last = session.sample([3, 5], SAMPLING, seed=0, progress=ignore_progress)
    path = session.interpolate(first, last, SAMPLING, count=5)
    assert len(path) == 5
    np.testing.assert_allclose(path[0], first.latents, atol=1e-3)
    np.testing.assert_allclose(path[-1], last.latents, atol=1e-3)


def test_inpainting_keeps_the_visible_pixels(session):
    (example,), _ = session.browse("test", start=0, count=1, label=None)
    hidden = np.zeros(session.field.image_shape[:2], bool)
    hidden[:, :4] = True
    answer = session.inpaint(example.original, hidden, draws=2, steps=3, seed=0)
    assert answer.pop("visible")[0].shape == (8, 8, 4)
    assert len(answer) == 4  # without prior, mean, two samples
    for image, psnr in answer.values():
        visible = example.original[~hidden] / np.float32(255)
        np.testing.assert_allclose(image[~hidden], visible, atol=1e-6)
        assert np.isfinite(psnr)
    with pytest.raises(UserError):
        session.inpaint(example.original, np.zeros_like(hidden), draws=1, steps=3, seed=0)


def test_run_without_generator_or_images_can_be_browsed(run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "generate")
    session = Session(copy, data_dir=None)
    assert "generate" in session.generator_problem
    assert isinstance(session.browse("test", start=0, count=1, label=None)[0][0], Example)


def test_directory_without_a_run_is_rejected(tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011
        Session(tmp_path, data_dir=None)
