"""A run with all that its stages leave and nothing trained: random field, functaset and generator."""

import jax
import numpy as np

from functa.configs import digits
from functa.data import images
from functa.data.functaset import reader
from functa.fields.fitter import build_fitter
from functa.runtime import config as config_lib
from functa.training.checkpoint import Checkpoints, digest
from functa.training.tasks import generation
from functa.training.tasks.builders import build_meta_learning
from tests.support import functaset_sets


def make(directory, *, encoded=False, **changes):
    """Writes config, field, functaset and generator of digits:tiny; returns the directory.

    The functaset is random, or what the field makes of the digits where `encoded` asks for it.
    """
    config = digits.get_config("tiny")
    config.generate.model = {"name": "mlp", "width": 16, "depth": 1, "mlp_width": 16}
    config.update_from_flattened_dict(changes)
    directory.mkdir()
    config_lib.freeze(config, directory)
    task = build_meta_learning(config, sources={})
    field_params = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
    save(directory / "meta_learn" / "field", field_params)
    config_lib.write_json(directory / "meta_learn" / "metrics.json", {})
    if encoded:
        encode(directory / "functaset", config, field_params)
    else:
        functaset_sets.write(
            directory / "functaset",
            latent_shape=tuple(config.field.latent_shape),
            field_digest=digest(field_params),
        )
    init = generation.make_init(
        generation.make_model(config), latent_shape=tuple(config.field.latent_shape)
    )
    # A denoiser begins by saying zero whatever the class; this one says something.
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.2 * random.normal(size=leaf.shape), np.float32),
        jax.device_get(jax.jit(init)(jax.random.key(1))),
    )
    save(directory / "generate" / "best", params)
    there = reader.open_functaset(directory / "functaset", field_digest=None)
    config_lib.write_json(
        directory / "generate" / "metrics.json", {"functaset_digest": there.manifest.digest}
    )
    return directory


def encode(directory, config, field_params):
    encoder = jax.jit(build_fitter(config).encode)
    data = {key: config.data[key] for key in ("source", "name", "data_dir", "num_classes")}
    functaset_sets.encode(
        directory,
        splits=images.open_splits(**config.data),
        fit=lambda batch: encoder(field_params, batch),
        field_digest=digest(field_params),
        config=config,
        class_names=images.class_names(**data),
    )


def save(directory, params):
    checkpoints = Checkpoints(directory, keep=1)
    checkpoints.save(0, params, {})
    checkpoints.close()
