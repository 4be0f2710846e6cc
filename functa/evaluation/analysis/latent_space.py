"""How latents behave: at other resolutions, between two images, with noise, as neighbours."""

import jax
import jax.numpy as jnp
import numpy as np

from functa.evaluation.analysis.table import Column, Table
from functa.evaluation.analysis.trained_field import Subject, image_mse, mean_psnr, to_float
from functa.runtime import rng

NOISE = (0.01, 0.03, 0.1)  # standard deviations of a channel
_ROWS = 512  # of a matrix of distances, at a time


def resolution(subject: Subject) -> dict[str, Table]:
    """Decoding where nothing was fitted: above the training resolution, beside bicubic."""
    h, w, _ = subject.field.image_shape
    rows = []
    for scale, crops in sorted(subject.crops.items()):
        small = shrink(crops, scale)
        fitted, truth = subject.fit(small), to_float(crops)
        decoded = subject.decode(fitted.latents, scale)
        enlarged = subject.in_batches(
            lambda x, s=scale: bicubic(x, s), to_float(small), part=scale**2
        )
        psnr = {
            "fit_psnr": mean_psnr(fitted.mse[:, -1]),
            "psnr": mean_psnr(image_mse(decoded, truth)),
            "bicubic_psnr": mean_psnr(image_mse(enlarged, truth)),
        }
        gain = psnr["psnr"] - psnr["bicubic_psnr"]
        size = f"{scale * h}x{scale * w}"
        rows.append({"size": size, "scale": scale, **psnr, "gain": gain})
    columns = (
        Column("size", "", "of the true crops, in pixels"),
        Column("scale", "", "times the training resolution"),
        Column("fit_psnr", "dB", "PSNR at the training resolution, where the latents were fitted"),
        Column("psnr", "dB", "PSNR of the field decoded at that size, against the true crops"),
        Column("bicubic_psnr", "dB", "the same of bicubic enlargement of what the latents saw"),
        Column("gain", "dB", "psnr less bicubic_psnr"),
    )
    note = (
        f"Crops of pictures, averaged down to {h}x{w} pixels (box filter, rounded to bytes), "
        "fitted there and decoded at their own size; other crops for each size. PSNR is the mean "
        "over crops, nothing clipped. Where fit_psnr is low, the field does not know such pictures."
    )
    count = len(next(iter(subject.crops.values())))
    return {"resolution": Table("Held-out coordinates", note, count, columns, rows)}


def shrink(images: np.ndarray, scale: int) -> np.ndarray:
    """[n, scale h, scale w, c] uint8 -> [n, h, w, c] uint8, means of squares, rounded."""
    n, h, w, c = images.shape
    squares = images.reshape(n, h // scale, scale, w // scale, scale, c)
    return np.rint(squares.mean((2, 4), dtype=np.float64)).astype(np.uint8)


def bicubic(images: np.ndarray, scale: int) -> jax.Array:
    """[n, h, w, c] float32 -> [n, scale h, scale w, c] by Keys' cubic kernel, a = -0.5."""
    n, h, w, c = images.shape
    return jax.image.resize(jnp.asarray(images), (n, scale * h, scale * w, c), "cubic")


def latents(subject: Subject) -> dict[str, Table]:
    """Neighbours, midpoints and noise in the space of latents."""
    return {
        "latents_neighbours": neighbours(subject),
        "latents_midpoints": midpoints(subject),
        "latents_noise": noise(subject),
    }


def neighbours(subject: Subject) -> Table:
    """Does the nearest other image have the same label?"""
    found = {
        "latents": subject.fitted.latents / np.maximum(subject.channel_std, 1e-30),
        "pixels": to_float(subject.images),
    }
    rows = []
    for space, points in found.items():
        right = subject.labels[nearest_other(points.reshape(len(points), -1))] == subject.labels
        accuracy = float(right.mean())
        error = float(np.sqrt(accuracy * (1 - accuracy) / len(right)))
        rows.append({"space": space, "accuracy": accuracy, "standard_error": error})
    columns = (
        Column("space", "", "where distances are taken"),
        Column("accuracy", "%", "images whose nearest other image has their label"),
        Column("standard_error", "%", "of the accuracy, by the number of images"),
    )
    note = (
        "Leave-one-out 1-NN, Euclidean; latents are divided by each channel's standard deviation."
    )
    return Table("Nearest neighbours", note, len(subject.labels), columns, rows)


def nearest_other(points: np.ndarray) -> np.ndarray:
    """Index of the nearest other point of each of points [n, k] float32, n >= 2: [n]."""
    squares = np.square(points).sum(-1)
    found = []
    for first in range(0, len(points), _ROWS):
        part = points[first : first + _ROWS]
        distances = squares - 2 * (
            part @ points.T
        )  # less the row's own square, which orders nothing
        distances[np.arange(len(part)), np.arange(first, first + len(part))] = np.inf
        found.append(distances.argmin(-1))
    return np.concatenate(found)


def midpoints(subject: Subject) -> Table:
    """What lies halfway between the latents of two images."""
    half = len(subject.images) // 2
    fitted, images = subject.fitted.latents, to_float(subject.images)
    ends = subject.decode(fitted[: 2 * half])
    middle = subject.decode((fitted[:half] + fitted[half : 2 * half]) / 2)
    row = {
        "pairs": half,
        "psnr": mean_psnr(image_mse(middle, (ends[:half] + ends[half:]) / 2)),
        "image_psnr": mean_psnr(image_mse(middle, (images[:half] + images[half : 2 * half]) / 2)),
        "outside": range_errors(middle),
        "outside_ends": range_errors(ends),
    }
    columns = (
        Column("pairs", "", "of images, each in one pair"),
        Column("psnr", "dB", "of the decoded midpoint, against the mean of both decoded images"),
        Column("image_psnr", "dB", "the same against the mean of both images themselves"),
        Column("outside", "%", "values of the decoded midpoints outside [0, 1]"),
        Column("outside_ends", "%", "the same of the decoded images"),
    )
    note = "The higher the PSNR, the nearer to a linear map is the field between two images."
    return Table("Midpoints of latents", note, 2 * half, columns, [row])


def range_errors(values: np.ndarray) -> float:
    """The part of values outside [0, 1] by more than half a step of a byte."""
    return float(np.mean((values < -0.5 / 255) | (values > 1 + 0.5 / 255)))


def noise(subject: Subject) -> Table:
    """PSNR lost when latents are disturbed."""
    key = rng.stream_key(subject.config.seed, "noise")
    draw = np.asarray(jax.random.normal(key, subject.fitted.latents.shape))
    exact = mean_psnr(subject.fitted.mse[:, -1])
    rows = []
    for size in NOISE:
        mse = subject.mse(subject.fitted.latents + np.float32(size) * subject.channel_std * draw)
        rows.append({"noise": size, "psnr": mean_psnr(mse), "lost": exact - mean_psnr(mse)})
    columns = (
        Column("noise", "%", "standard deviation of the noise, of the channel's own"),
        Column("psnr", "dB", "mean over images of each image's PSNR"),
        Column("lost", "dB", "psnr without noise less this one"),
    )
    return Table("Gaussian noise on latents", "One draw an image.", len(draw), columns, rows)
