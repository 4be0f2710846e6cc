"""Metrics of a run: their units, descriptions and formatting, and the summary of all stages."""

import json
import math
from typing import Any, NamedTuple

from etils import epath

from functa.runtime import config

STAGES = ("meta_learn", "encode", "classify", "generate")  # in execution order

Summary = dict[str, dict[str, Any]]  # {stage: {metric key: value}}


class Metric(NamedTuple):
    """Unit and one-line description of a key of metrics.json. A "%" is stored as a fraction."""

    unit: str
    description: str


# In display order.
METRICS = {
    "psnr": Metric("dB", "mean over all test images of the PSNR of each image; higher is better"),
    "pca_psnr": Metric("dB", "psnr of PCA with as many numbers per image: the baseline"),
    "psnr_of_mean_mse": Metric("dB", "PSNR of the mean squared error over all images; at most psnr"),
    "stored_psnr": Metric("dB", "psnr of the stored latents, rounding included"),
    "validation_psnr": Metric("dB", "psnr of the validation split"),
    "train_psnr": Metric("dB", "psnr of the training split, augmented copies included"),
    "accuracy": Metric("%", "correctly classified test examples"),
    "accuracy_standard_error": Metric("%", "standard error of the accuracy for this test split size"),
    "top5_accuracy": Metric("%", "test examples whose label is among the five best predictions"),
    "loss": Metric("nats", "mean cross-entropy of the test split; lower is better"),
    "validation_accuracy": Metric("%", "accuracy on the validation split"),
    "label_agreement": Metric("%", "samples that the classifier of the run assigns to their label"),
    "frechet_distance": Metric("", "Fréchet distance of samples to half of the test images; lower is better"),
    "frechet_floor": Metric("", "Fréchet distance of the other test images to the same half"),
    "frechet_reconstruction": Metric("", "Fréchet distance of reconstructions: the limit of the latents"),
    "frechet_gaussian": Metric("", "Fréchet distance of samples of a Gaussian fitted to the latents"),
    "frechet_features": Metric("", "features for all distances; cnn is trained on the labels"),
    "frechet_images": Metric("images", "size of each of the two sets of a Fréchet distance"),
    "kernel_distance": Metric("", "squared maximum mean discrepancy of samples and test images; lower is better"),
    "kernel_distance_standard_error": Metric("", "standard error of kernel_distance"),
    "kernel_distance_floor": Metric("", "kernel distance of two halves of the test images; about 0"),
    "kernel_distance_floor_standard_error": Metric("", "standard error of kernel_distance_floor"),
    "r2": Metric("%", "variance of the target that the denoiser explains (R2), test split"),
    "validation_r2": Metric("%", "r2 of the validation split"),
    "denoising_loss": Metric("", "weighted mean squared error of the denoiser, test split"),
    "baseline_loss": Metric("", "denoising_loss of a denoiser that predicts zero"),
    "samples": Metric("", "evaluated samples"),
    "samples_per_second": Metric("samples/s", "sampling speed without compilation"),
    "generator_parameters": Metric("", "parameters of the generator"),
    "precision": Metric("%", "samples within the manifold of test images; higher is better"),
    "precision_real": Metric("%", "precision of other test images"),
    "recall": Metric("%", "test images within the manifold of samples; higher is better"),
    "recall_real": Metric("%", "recall of other test images"),
    "density": Metric("", "test neighborhoods per sample, normalized; about 1 for real images"),
    "density_real": Metric("", "density of other test images"),
    "coverage": Metric("%", "test images with a sample in their neighborhood; higher is better"),
    "coverage_real": Metric("%", "coverage of other test images"),
    "memorization_ratio": Metric(
        "", "distance to the nearest training image, samples / test images; 0 means copies"
    ),
    "memorization_ratio_latents": Metric("", "memorization_ratio measured between latents"),
    "examples": Metric("", "encoded examples of all splits, augmented copies included"),
    "test_images": Metric("images", "size of the test split; all images are evaluated"),
    "test_examples": Metric("", "size of the test split; all examples are evaluated"),
    "shards": Metric("files", "shards of the functaset"),
    "latent_bytes": Metric("bytes", "size of the stored latents of one example"),
    "bytes_per_example": Metric("bytes", "size of all shards / examples; padding dominates small sets"),
    "latent_floats": Metric("floats", "latents of one image"),
    "field_parameters": Metric("", "parameters of the field, shared by all images"),
    "classifier_parameters": Metric("", "parameters of the classifier"),
    "images_per_second": Metric("images/s", "training speed without evaluation"),
    "examples_per_second": Metric("examples/s", "encoding speed without evaluation"),
    "steps_per_second": Metric("steps/s", "training speed without evaluation"),
    "steps": Metric("", "optimizer steps"),
    "best_step": Metric("", "step of the best checkpoint by validation score"),
    "first_step_seconds": Metric("s", "time until the first step completed, compilation included"),
    "seconds": Metric("s", "duration of the stage, restarts included"),
    "device": Metric("", "kind and number of devices"),
}  # fmt: skip


def metric(key: str) -> Metric:
    """The metric of a key; an unknown key has neither unit nor description."""
    return METRICS.get(key, Metric("", ""))


def ordered(metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    """Items in display order: known metrics first, without digests."""
    known = [key for key in METRICS if key in metrics]
    unknown = [key for key in metrics if key not in METRICS and not key.endswith("_digest")]
    return [(key, metrics[key]) for key in [*known, *unknown]]


def format_number(value: float) -> str:
    """A number with four significant digits or all integer digits, without trailing zeros.

    1234567 -> "1,234,567"; 0.000012 -> "1.2e-5"; 36.04321 -> "36.04"; nan -> "nan".
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}"
    if 1e-4 <= abs(value) < 1e9:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_value(key: str, value: Any) -> str:
    """A metric's value as text in its unit; strings stay as they are, other values become JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    unit = metric(key).unit
    if unit == "%":
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if unit == "dB" else format_number(value)


def read_metrics(workdir: epath.PathLike) -> Summary:
    """Contents of all <stage>/metrics.json in execution order; other directories follow by name.

    Raises:
      DamagedFileError: a file is not JSON.
    """
    paths = {path.parent.name: path for path in epath.Path(workdir).glob("*/metrics.json")}
    names = [*(stage for stage in STAGES if stage in paths), *sorted(paths.keys() - set(STAGES))]
    return {name: config.read_json(paths[name]) for name in names}


def write_summary(workdir: epath.PathLike) -> Summary:
    """Writes the metrics of all stages to summary.json and returns them."""
    summary = read_metrics(workdir)
    config.write_json(epath.Path(workdir) / "summary.json", summary)
    return summary


def results_table(summary: Summary) -> str:
    """Text table with the columns stage, metric, value and unit, aligned for a terminal."""
    rows = [("stage", "metric", "value", "unit")]
    for stage, metrics in summary.items():
        for index, (key, value) in enumerate(ordered(metrics)):
            name = "" if index else stage
            rows.append((name, key, format_value(key, value), metric(key).unit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])
