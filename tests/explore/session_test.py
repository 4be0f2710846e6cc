"""Answers of the explore page, without the page, for a run with a random field and generator."""

import json
import shutil

import jax
import numpy as np
import pytest

from functa.explore.session import Example, Sampling, Session
from functa.pipeline.released import find_run
from tests.support import generator_runs

SAMPLING = Sampling(guidance=1.5, steps=4, solver="heun")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its functaset holds the digits, each training image twice."""
    return generator_runs.make(tmp_path_factory.mktemp("explore") / "run", encoded=True)


@pytest.fixture(scope="module")
def session(run):
    return Session(run, data_dir=None)


@pytest.mark.parametrize("label", [None, 3])
def test_pages_contain_every_record_of_a_class_once(session, label):
    records = session.run.functaset["train"][:]
    chosen = np.flatnonzero(records["label"] == label) if label else np.arange(192)
    start, latents = 0, []
    while start is not None:
        examples, start = session.browse("train", start=start, count=7, label=label)
        assert len(examples) == min(7, len(chosen) - len(latents))
        assert label is None or {example.label for example in examples} == {label}
        latents += [example.latents for example in examples]
    np.testing.assert_array_equal(np.stack(latents), records["latents"][chosen])
    assert session.browse("train", start=10**6, count=7, label=label) == ([], None)


def test_rare_class_is_searched_in_parts(session, monkeypatch):
    monkeypatch.setattr("functa.explore.session._SEARCHED", 5)
    labels = session.run.functaset["test"][:]["label"]
    first, start = session.browse("test", start=0, count=7, label=int(labels[7]))
    second, _ = session.browse("test", start=start, count=7, label=int(labels[7]))
    assert start == 5
    assert [len(first), len(second)] == [np.sum(labels[k : k + 5] == labels[7]) for k in (0, 5)]


def test_a_released_model_without_its_data_set_takes_pictures_and_samples(tmp_path):
    model = shutil.copytree(find_run("digits"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["data"].update(source="tfds", name="absent", data_dir=str(tmp_path))
    (model / "config.json").write_text(json.dumps(config))
    session = Session(model, data_dir=None)
    assert "absent" in session.functaset_problem
    assert "absent" in session.images_problem
    assert not session.splits
    assert not session.generator_problem
    assert session.encode(np.zeros((8, 8, 1), np.uint8), name="mine").latents.shape == (2, 2, 8)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_original_has_the_psnr_that_its_record_stores(session, split):
    """Also if it is an augmented copy. Latents are rounded and images clipped: PSNR differs a little."""
    examples, _ = session.browse(split, start=3, count=9, label=None)
    assert session.images_problem == ""
    images = session.decode(np.stack([example.latents for example in examples]), scale=1)
    originals = np.stack([example.original for example in examples]) / np.float32(255)
    decoded = -10 * np.log10(np.square(images - originals).mean((1, 2, 3)))
    stored = session.run.functaset[split][3:12]["psnr"]
    assert np.all(decoded > stored - 0.05)
    assert np.median(decoded - stored) < 0.5
    assert any("copy 1" in example.caption for example in examples) == (split == "train")


@pytest.mark.parametrize(("count", "scale"), [(1, 4), (3, 1), (17, 3)])
def test_decoded_images_are_values_of_the_field(session, count, scale):
    shape = (count, *session.run.latent_shape)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    h, w, _ = session.run.image_shape
    values = session.run.field(session.run.params["field"], latents, (scale * h, scale * w))
    decoded = session.decode(latents, scale=scale)
    np.testing.assert_allclose(decoded, np.clip(values, 0, 1), atol=1e-6)


def test_enlargement_is_bicubic_of_the_original_or_the_decoded_image(session):
    (record,), _ = session.browse("test", start=4, count=1, label=None)
    sample = Example(record.latents, 3, "sample")
    decoded = session.decode(record.latents[None], scale=1)[0]
    for example, small in ((record, record.original / np.float32(255)), (sample, decoded)):
        expected = jax.image.resize(small, (24, 24, 1), "cubic").clip(0, 1)
        np.testing.assert_allclose(session.enlarge(example, scale=3), expected, atol=1e-6)


def test_samples_are_those_of_the_generator(session):
    labels = [7, 2, session.num_classes, *range(9)]  # more than one batch
    sampled = session.sample(labels, SAMPLING, seed=5)
    generator = session.run.generator.with_sampling(steps=4, solver="heun", guidance_scale=1.5)
    expected = generator.sample(
        seed=5, numbers=np.arange(12, dtype=np.int32), labels=np.int32(labels), batch_size=12
    )
    np.testing.assert_allclose([one.latents for one in sampled], expected, atol=1e-4)
    assert [one.label for one in sampled] == labels


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"steps": 5}, {"guidance": 4.0}, {"solver": "euler"}]
)
def test_every_setting_changes_the_samples(session, changes):
    seed = changes.pop("seed", 0)
    usual = session.sample([4], SAMPLING, seed=0)[0].latents
    other = session.sample([4], SAMPLING._replace(**changes), seed=seed)[0].latents
    assert np.abs(other - usual).max() > 1e-3


def test_interpolation_returns_nearly_to_both_ends(session):
    fine = Sampling(guidance=1.0, steps=60, solver="heun")
    sample = session.sample([3, 5], fine, seed=8)[1]
    (record,), _ = session.browse("test", start=5, count=1, label=None)
    path = session.interpolate(sample, record, fine, count=5)
    assert path.shape == (5, *session.run.latent_shape)
    ends = session.decode(path[[0, -1]], scale=1)
    expected = session.decode(np.stack([sample.latents, record.latents]), scale=1)
    np.testing.assert_allclose(ends, expected, atol=0.05)
    assert np.abs(path[2] - path[0]).max() > 1e-3


def test_a_picture_is_encoded_like_a_record(session):
    (record,), _ = session.browse("test", start=4, count=1, label=None)
    example = session.encode(record.original, name="mine")
    np.testing.assert_allclose(example.latents, record.latents, atol=1e-2)
    assert example.caption.startswith("mine, ")
    assert example.original is record.original


def test_inpainting_keeps_visible_pixels_and_reports_psnr_of_hidden_ones(session):
    (example,), _ = session.browse("test", start=9, count=1, label=None)
    hidden = np.zeros((8, 8), bool)
    hidden[:, :4] = True
    original = example.original / np.float32(255)
    answer = session.inpaint(example.original, hidden, samples=3, steps=3, seed=0)
    assert list(answer) == ["without prior", "mean of samples", "sample 1", "sample 2", "sample 3"]
    for image, psnr in answer.values():
        np.testing.assert_allclose(image[~hidden], original[~hidden], atol=1e-6)
        mse = np.square(image[hidden] - original[hidden]).mean(dtype=np.float64)
        np.testing.assert_allclose(psnr, -10 * np.log10(mse), rtol=1e-4)
    samples = [answer[f"sample {k}"][0] for k in (1, 2, 3)]
    np.testing.assert_allclose(answer["mean of samples"][0], np.mean(samples, 0), atol=1e-6)
    assert np.abs(samples[0] - samples[1]).max() > 1e-3
    other = session.inpaint(example.original, hidden, samples=3, steps=3, seed=1)
    np.testing.assert_array_equal(other["without prior"][0], answer["without prior"][0])
    assert np.abs(other["sample 1"][0] - samples[0]).max() > 1e-3
    with pytest.raises(ValueError, match="hidden"):
        session.inpaint(example.original, hidden & False, samples=1, steps=2, seed=0)


def test_run_without_usable_generator_can_be_browsed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "generate" / "metrics.json").write_text('{"functaset_digest": "sha256:1"}')
    assert "sha256:1" in Session(copy, data_dir=None).generator_problem
    shutil.rmtree(copy / "generate")
    session = Session(copy, data_dir=None)
    assert "generate" in session.generator_problem
    assert len(session.browse("test", start=0, count=3, label=None)[0]) == 3


def test_run_without_images_can_be_browsed(tmp_path):
    run = generator_runs.make(tmp_path / "run", **{"data.source": "tfds", "data.name": "mine"})
    session = Session(run, data_dir=str(tmp_path / "data"))
    assert str(tmp_path / "data") in session.images_problem
    examples, _ = session.browse("test", start=0, count=3, label=None)
    assert [example.original for example in examples] == [None] * 3


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_another_data_set_are_not_shown(tmp_path, split):
    """The functaset is random: ids of its test records do not exist, labels of its train records differ."""
    session = Session(generator_runs.make(tmp_path / "run"), data_dir=None)
    assert session.images_problem == ""
    examples, _ = session.browse(split, start=0, count=40, label=None)
    assert {example.original for example in examples} == {None}
    assert session.images_problem != ""


@pytest.mark.parametrize("missing", ["config.json", "meta_learn", "functaset"])
def test_incomplete_run_is_rejected(run, tmp_path, missing):
    for part in {"config.json", "meta_learn", "functaset"} - {missing}:
        (tmp_path / part).symlink_to(run / part)
    with pytest.raises(ValueError, match=missing):
        Session(tmp_path, data_dir=None)
