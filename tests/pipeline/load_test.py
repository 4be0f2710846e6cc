"""Loading of fields, classifiers and generators, and rejection of parts that do not belong together."""

import shutil

import jax
import numpy as np
import pytest

from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.training import checkpoint
from functa.training.tasks.builders import build_classification
from tests.support import functaset_sets, generator_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return generator_runs.make(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_generator_is_the_best_checkpoint(run, copy):
    first = load.load_generator(run)
    newer = jax.tree.map(lambda leaf: leaf + 1, first.params)
    shutil.rmtree(copy / "generate" / "best")
    generator_runs.save(copy / "generate" / "best", newer)
    jax.tree.map(np.testing.assert_array_equal, load.load_generator(copy).params, newer)
    assert first.field.latent_shape == tuple(first.functaset.manifest.latent_shape)
    assert checkpoint.digest(first.field_params) == first.functaset.manifest.field_digest
    latents = np.ones((1, *first.field.latent_shape), np.float32)
    mean, std = first.functaset.manifest.mean, first.functaset.manifest.std
    np.testing.assert_allclose(
        first.generator.normalization.normalize(latents)[0, 0, 0],
        (1 - np.array(mean)) / std,
        rtol=1e-4,
    )


def test_incomplete_stage_is_rejected(copy):
    (copy / "generate" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="the stage generate of .*copy is not complete"):
        load.load_generator(copy)
    shutil.rmtree(copy / "generate")
    with pytest.raises(ValueError, match="the stage generate of .*copy is not complete"):
        load.load_generator(copy)


def test_missing_checkpoint_is_rejected(copy):
    shutil.rmtree(copy / "generate" / "best")
    with pytest.raises(ValueError, match="best holds no complete checkpoint"):
        load.load_generator(copy)
    assert not (copy / "generate" / "best").exists()


def test_another_functaset_is_rejected_with_both_digests(run, copy):
    trained_on = load.load_generator(run).functaset.manifest
    shutil.rmtree(copy / "functaset")
    functaset_sets.write(
        copy / "functaset",
        latent_shape=tuple(trained_on.latent_shape),
        field_digest=trained_on.field_digest,
        per_shard=7,
    )
    there = config_lib.read_json(copy / "functaset" / "manifest.json")["digest"]
    assert there != trained_on.digest
    with pytest.raises(ValueError, match=f"{trained_on.digest}.*{there}"):
        load.load_generator(copy)


def test_classifier_of_another_functaset_is_rejected(run, copy):
    generator = load.load_generator(run)
    arguments = generator.functaset, copy
    with pytest.raises(ValueError, match="the stage classify of .*copy is not complete"):
        load.load_classifier(*arguments)
    (copy / "classify").mkdir()
    config_lib.write_json(copy / "classify" / "metrics.json", {"functaset_digest": "another"})
    there = generator.functaset.manifest.digest
    with pytest.raises(ValueError, match=f"another.*{there}"):
        load.load_classifier(*arguments)


def test_classifier_applies_to_any_number_of_latents(run, copy):
    generator = load.load_generator(run)
    task = build_classification(config_lib.load(run), generator.functaset)
    params = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    params = jax.tree.map(
        lambda leaf: leaf + np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape),
        params,
    )  # initial logits are zero
    shutil.rmtree(copy / "classify", ignore_errors=True)
    generator_runs.save(copy / "classify" / "best", params)
    digest = generator.functaset.manifest.digest
    config_lib.write_json(copy / "classify" / "metrics.json", {"functaset_digest": digest})
    logits = load.load_classifier(generator.functaset, copy)
    shape = tuple(config_lib.load(run).field.latent_shape)
    latents = np.random.default_rng(0).normal(size=(23, *shape)).astype(np.float32)
    expected = logits(latents)
    assert expected.shape == (23, 10)
    assert len(np.unique(expected.argmax(-1))) > 1
    np.testing.assert_allclose(logits(latents[:5]), expected[:5], atol=1e-5)


def test_config_of_another_version_is_rejected(copy):
    config = config_lib.read_json(copy / "config.json")
    del config["generate"]["parameterization"]
    config_lib.write_json(copy / "config.json", config)
    with pytest.raises(ValueError, match="config.json does not have the keys"):
        load.load_generator(copy)


def test_another_field_is_rejected_with_both_digests(run, copy):
    first = load.load_generator(run)
    other = jax.tree.map(lambda leaf: leaf + 1, first.field_params)
    shutil.rmtree(copy / "meta_learn" / "field")
    generator_runs.save(copy / "meta_learn" / "field", other)
    ours, theirs = checkpoint.digest(first.field_params), checkpoint.digest(other)
    with pytest.raises(ValueError, match=f"{ours}, this field is {theirs}"):
        load.load_generator(copy)


def test_a_checkpoint_in_progress_is_not_touched(copy):
    """The stage is complete once its metrics exist."""
    in_progress = copy / "meta_learn" / "field" / "step_1.orbax-checkpoint-tmp"
    in_progress.mkdir()
    load.load_field(copy)
    assert in_progress.exists()
    (copy / "meta_learn" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="metrics.json .* meta_learn"):
        load.load_field(copy)
