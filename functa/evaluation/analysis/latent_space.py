"""Behavior of latents: decoding at other resolutions, neighbors, midpoints and noise."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functa.evaluation.analysis.table import PSNR_COLUMNS, Column, Table
from functa.evaluation.analysis.trained_field import TrainedField, image_mse, mean_psnr
from functa.fields.pixels import to_float
from functa.runtime import rng

NOISE_LEVELS = (0.01, 0.03, 0.1)  # standard deviations of a channel


def resolution(trained_field: TrainedField, crops: Mapping[int, np.ndarray]) -> dict[str, Table]:
    """PSNR of images decoded above the training resolution, beside bicubic interpolation.

    Args:
      crops: {scale: images [n, scale h, scale w, c] uint8}; n is the same for all scales.
    """
    h, w, _ = trained_field.field.image_shape
    rows = []
    for scale, images in sorted(crops.items()):
        small, targets = shrink(images, scale), to_float(images)
        fitted = trained_field.fit(small)
        enlarged = trained_field.in_batches(
            lambda x, scale=scale: bicubic(x, scale), to_float(small), scale=scale
        )
        row: dict[str, Any] = {
            "size": f"{scale * h}x{scale * w}",
            "scale": scale,
            "fit_psnr": mean_psnr(fitted.mse[:, -1]),
            "psnr": mean_psnr(image_mse(trained_field.decode(fitted.latents, scale), targets)),
            "bicubic_psnr": mean_psnr(image_mse(enlarged, targets)),
        }
        rows.append(row | {"gain": row["psnr"] - row["bicubic_psnr"]})
    columns = (
        Column("size", "", "size of the crops in pixels"),
        Column("scale", "", "size divided by the training resolution"),
        Column("fit_psnr", "dB", "PSNR at the training resolution, where the latents are fitted"),
        Column("psnr", "dB", "PSNR of the decoded crops at full size"),
        Column("bicubic_psnr", "dB", "PSNR of bicubic interpolation of the shrunk crops"),
        Column("gain", "dB", "psnr minus bicubic_psnr"),
    )
    note = (
        f"Crops of pictures are averaged to {h}x{w} pixels (box filter, rounded to bytes), fitted at "
        "that size and decoded at their own; each size has its own crops. PSNR is the mean over crops, "
        "without clipping. Where fit_psnr is low, the field was not trained on such pictures."
    )
    title, count = "Decoding above the training resolution", len(next(iter(crops.values())))
    return {"resolution": Table(title, note, count, columns, rows)}


def shrink(images: np.ndarray, scale: int) -> np.ndarray:
    """Box filter: [n, scale h, scale w, c] uint8 -> [n, h, w, c] uint8."""
    n, h, w, c = images.shape
    squares = images.reshape(n, h // scale, scale, w // scale, scale, c)
    return np.rint(squares.mean((2, 4), dtype=np.float64)).astype(np.uint8)


def bicubic(images: np.ndarray, scale: int) -> jax.Array:
    """[n, h, w, c] float32 -> [n, scale h, scale w, c], by Keys' cubic kernel with a = -0.5."""
    n, h, w, c = images.shape
    return jax.image.resize(jnp.asarray(images), (n, scale * h, scale * w, c), "cubic")


def latent_space(trained_field: TrainedField) -> dict[str, Table]:
    """Neighbors, midpoints and noise in the space of latents."""
    return {
        "latents_neighbors": neighbors(trained_field),
        "latents_midpoints": midpoints(trained_field),
        "latents_noise": noise(trained_field),
    }


def neighbors(trained_field: TrainedField) -> Table:
    """Accuracy of leave-one-out nearest-neighbor classification, in latents and in pixels."""
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    spaces = {
        "latents": trained_field.fitted.latents / np.maximum(trained_field.channel_std, 1e-30),
        "pixels": trained_field.targets,
    }
    labels, rows = trained_field.labels, []
    for space, points in spaces.items():
        search = NearestNeighbors(n_neighbors=1).fit(points.reshape(len(points), -1))
        (nearest,) = search.kneighbors(return_distance=False).T  # a point is no neighbor of itself
        accuracy = float(np.mean(labels[nearest] == labels))
        error = float(np.sqrt(accuracy * (1 - accuracy) / len(labels)))
        rows.append({"space": space, "accuracy": accuracy, "standard_error": error})
    columns = (
        Column("space", "", "space of the distances"),
        Column("accuracy", "%", "images whose nearest other image has the same label"),
        Column("standard_error", "%", "standard error of the accuracy"),
    )
    note = "Leave-one-out 1-NN, Euclidean; latents are divided by the standard deviation of the channel."
    return Table("Nearest neighbors", note, len(labels), columns, rows)


def midpoints(trained_field: TrainedField) -> Table:
    """Images decoded from the mean of the latents of two images."""
    half = len(trained_field.images) // 2
    latents, images = trained_field.fitted.latents, trained_field.targets

    def pair_means(values):
        return (values[:half] + values[half : 2 * half]) / 2

    ends = trained_field.decode(latents[: 2 * half])
    middle = trained_field.decode(pair_means(latents))
    row = {
        "pairs": half,
        "psnr": mean_psnr(image_mse(middle, pair_means(ends))),
        "image_psnr": mean_psnr(image_mse(middle, pair_means(images))),
        "out_of_range": _out_of_range(middle),
        "out_of_range_ends": _out_of_range(ends),
    }
    columns = (
        Column("pairs", "", "pairs of images; each image is in one pair"),
        Column("psnr", "dB", "PSNR of decoded midpoints against the mean of both decoded images"),
        Column("image_psnr", "dB", "PSNR of decoded midpoints against the mean of both images"),
        Column("out_of_range", "%", "values of the decoded midpoints outside [0, 1]"),
        Column("out_of_range_ends", "%", "values of the decoded images outside [0, 1]"),
    )
    note = "The higher the PSNR, the closer is the field to a linear map between two images."
    return Table("Midpoints of latents", note, 2 * half, columns, [row])


def _out_of_range(values: np.ndarray) -> float:
    """Fraction of values outside [0, 1] by more than half a step of 8 bits."""
    return float(np.mean((values < -0.5 / 255) | (values > 1 + 0.5 / 255)))


def noise(trained_field: TrainedField) -> Table:
    """PSNR of images decoded from latents with Gaussian noise."""
    latents, std = trained_field.fitted.latents, trained_field.channel_std
    key = rng.stream_key(trained_field.seed, "noise")
    standard_normal = np.asarray(jax.random.normal(key, latents.shape))
    exact = mean_psnr(trained_field.fitted.mse[:, -1])
    rows = []
    for level in NOISE_LEVELS:
        psnr = mean_psnr(trained_field.mse(latents + np.float32(level) * std * standard_normal))
        rows.append({"noise": level, "psnr": psnr, "lost": exact - psnr})
    columns = (
        Column("noise", "%", "standard deviation of the noise / that of the channel"),
        PSNR_COLUMNS[0],
        Column("lost", "dB", "psnr without noise minus this one"),
    )
    note = "One sample of the noise per image."
    return Table("Gaussian noise on latents", note, len(latents), columns, rows)
