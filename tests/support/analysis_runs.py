"""A run whose field is PCA of its cells to first order: a well-fitting field without training."""

import jax
import numpy as np

from functa.configs import digits
from functa.data import images
from functa.evaluation import pca_baseline
from functa.evaluation.analysis.trained_field import TrainedField
from functa.fields import siren
from functa.fields.fitter import build_field, build_fitter
from functa.fields.pixels import to_float
from functa.runtime import config as config_lib
from functa.training import checkpoint

INNER_STEPS = 3
COUNT = 40  # images that are measured; not a multiple of the batch size, 16


def make(directory):
    """Writes the stage meta_learn of digits:tiny; returns (config, params, image sources)."""
    config = digits.get_config("tiny")
    config.field.update(width=24, depth=2)
    sources = images.open_splits(**config.data)
    train = to_float(sources["train"].read(np.arange(96))["image"])
    cells = pca_baseline.image_cells(train, (2, 2)).reshape(-1, 16)
    # A learning rate of 8 solves a linear field in one step.
    log_lrs = np.log(np.float32([4, 5, 6]))
    params = {
        "field": pca_field(build_field(config), cells),
        "log_inner_lrs": np.broadcast_to(log_lrs[:, None, None, None], (INNER_STEPS, 1, 1, 8)),
    }
    config_lib.freeze(config, directory)
    checkpoints = checkpoint.Checkpoints(directory / "meta_learn" / "field", keep=1)
    checkpoints.save(0, params, {"digest": checkpoint.digest(params)})
    checkpoints.close()
    config_lib.write_json(directory / "meta_learn" / "metrics.json", {})
    return config, params, sources


def pca_field(field, cells):
    """Parameters of a field of depth 2 that is close to a PCA of cells [n, k].

    Values at zero latents are the mean, and derivatives with respect to latents are the principal
    components. The larger the null space part of the output layer, the closer is the field to linear.
    """
    random = np.random.default_rng(0)
    moments = pca_baseline.moments(cells)
    mean, basis = pca_baseline.principal_components(moments, field.latent_shape[2])
    first = field.w0 * random.uniform(-1, 1, (field.num_features, field.width))
    bias = random.uniform(-3, 3, field.width)
    phases = field.layout_features(field.image_shape[:2])[0] @ first + bias
    inverse = np.linalg.pinv(np.sin(phases))
    null_space = np.eye(field.width) - inverse @ np.sin(phases)
    output = inverse @ (mean - 0.5) + 10 * null_space @ random.normal(size=field.width)
    weights = (np.linalg.pinv(np.cos(phases) * output) @ basis).T
    network = {
        "weights": [first, output[:, None] / siren.OUTPUT_SCALE],
        "biases": [bias, np.zeros(1)],
    }
    return jax.tree.map(np.float32, {"siren": network, "map": {"weight": weights}})


def make_trained_field(config, params, sources, **changed):
    batch = sources["test"].read(np.arange(COUNT))
    settings = {
        "fitter": build_fitter(config),
        "params": params,
        "train": sources["train"],
        "images": batch["image"],
        "labels": batch["label"],
        "batch_size": 16,
        "seed": 0,
    }
    return TrainedField(**settings | changed)


def psnr(mse):
    """Mean PSNR in dB, by its definition."""
    return float(np.mean(-10 * np.log10(np.asarray(mse, np.float64))))
