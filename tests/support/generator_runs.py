"""Untrained stand-in for a finished run: random field, functaset and generator."""

import jax
import numpy as np

from functa.configs import digits
from functa.data import images
from functa.data.functaset import reader
from functa.diffusion.generator import build_generator
from functa.fields.fitter import build_fitter
from functa.runtime import config as config_lib
from functa.training.checkpoint import Checkpoints, digest
from functa.training.tasks.builders import build_meta_learning
from tests.support import functaset_sets


def make(directory, *, encoded=False, **changes):
    """Writes config, field, functaset and generator of digits:tiny; returns the directory.

    Args:
      encoded: encode the digits with the field; otherwise the latents are random.
      changes: of the config, flattened.
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
    functaset = reader.open_functaset(directory / "functaset", field_digest=None)
    generator = build_generator(config.generate, functaset, num_classes=config.data.num_classes)
    # The output of an untrained denoiser is zero.
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.2 * random.normal(size=leaf.shape), np.float32),
        jax.device_get(jax.jit(generator.init)(jax.random.key(1))),
    )
    save(directory / "generate" / "best", params)
    config_lib.write_json(
        directory / "generate" / "metrics.json", {"functaset_digest": functaset.manifest.digest}
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
