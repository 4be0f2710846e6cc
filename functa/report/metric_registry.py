"""What a run has measured: one summary of all stages, and how each number is named and shown."""

import json
from typing import Any, NamedTuple

from etils import epath

from functa.report import charts
from functa.runtime import config

STAGES = ("meta_learn", "encode", "classify", "generate")  # in the order they run


class Measure(NamedTuple):
    """Unit and one line of meaning of a key of metrics.json."""

    unit: str
    meaning: str


# In the order they are shown.
MEASURES = {
    "psnr": Measure("dB", "mean over all test images of each image's PSNR; higher is better"),
    "pca_psnr": Measure("dB", "the same for PCA with as many floats: the baseline to beat"),
    "psnr_of_mean_mse": Measure("dB", "PSNR of the mean error: the other convention, never higher"),
    "stored_psnr": Measure("dB", "psnr of the latents as stored, rounding included"),
    "validation_psnr": Measure("dB", "psnr of the validation split"),
    "train_psnr": Measure("dB", "psnr of the training split, augmented copies included"),
    "accuracy": Measure("%", "test examples given the right label"),
    "accuracy_standard_error": Measure("%", "of the accuracy, by the size of the test split"),
    "top5_accuracy": Measure("%", "test examples whose label is among the five most likely"),
    "loss": Measure("nats", "mean cross-entropy of the test split; lower is better"),
    "validation_accuracy": Measure("%", "accuracy on the validation split"),
    "label_agreement": Measure(
        "%", "samples that the run's classifier sees as the class asked for"
    ),
    "fid": Measure("", "Fréchet distance of Inception features: all samples, all test images"),
    "frechet_distance": Measure(
        "", "Fréchet distance of samples from half of the test images; lower is better"
    ),
    "frechet_floor": Measure("", "the same of the other half: what real images get"),
    "frechet_reconstruction": Measure(
        "", "the same of reconstructions: what the latents can reach"
    ),
    "frechet_gaussian": Measure("", "the same of a Gaussian fitted to the latents: to be beaten"),
    "frechet_features": Measure("", "what images are described by; cnn: trained on the labels"),
    "frechet_images": Measure("images", "in each of two sets whose Fréchet distance is taken"),
    "kernel_distance": Measure(
        "", "squared maximum mean discrepancy of samples from test images; lower is better"
    ),
    "kernel_distance_standard_error": Measure("", "of the kernel distance"),
    "kernel_distance_floor": Measure("", "the same of two halves of the test images: about 0"),
    "kernel_distance_floor_standard_error": Measure("", "of that floor"),
    "r2": Measure("%", "variance of the target that the denoiser explains (R2), test split"),
    "validation_r2": Measure("%", "r2 of the validation split"),
    "denoising_loss": Measure(
        "", "weighted mean squared error of what the denoiser says, test split"
    ),
    "samples": Measure("", "samples that were drawn and judged"),
    "samples_per_second": Measure("samples/s", "speed of drawing, compilation left out"),
    "generator_parameters": Measure("", "weights of the generator"),
    "precision": Measure("%", "samples that lie among test images; higher is better"),
    "precision_real": Measure("%", "the same of other test images"),
    "recall": Measure("%", "test images that lie among samples; higher is better"),
    "recall_real": Measure("%", "the same with other test images as samples"),
    "density": Measure("", "how deep samples lie among test images; about 1 for real ones"),
    "density_real": Measure("", "the same of other test images"),
    "coverage": Measure("%", "test images that have a sample near them; higher is better"),
    "coverage_real": Measure("%", "the same with other test images as samples"),
    "memorisation_ratio": Measure(
        "", "distance of samples to the nearest training image over that of test images; 0: copies"
    ),
    "memorisation_ratio_latents": Measure("", "the same between latents"),
    "examples": Measure("", "encoded examples: all splits, all augmented copies"),
    "test_images": Measure("images", "images in the test split, every one of them scored"),
    "test_examples": Measure("", "examples in the test split, every one of them scored"),
    "shards": Measure("files", "the functaset is stored in"),
    "latent_bytes": Measure("bytes", "latents of one example as stored"),
    "bytes_per_example": Measure(
        "bytes", "size of all files by examples; few examples are mostly padding"
    ),
    "latent_floats": Measure("floats", "latents of one image"),
    "field_parameters": Measure("", "weights of the field, which all images share"),
    "classifier_parameters": Measure("", "weights of the classifier"),
    "images_per_second": Measure("images/s", "speed of training, evaluation left out"),
    "examples_per_second": Measure("examples/s", "speed, evaluation left out"),
    "steps_per_second": Measure("steps/s", "speed of training, evaluation left out"),
    "steps": Measure("", "optimiser steps of the run"),
    "best_step": Measure("", "step of the kept checkpoint, the best on validation"),
    "first_step_seconds": Measure("s", "until the first step was done, compilation included"),
    "seconds": Measure("s", "time the stage took, restarts included"),
    "device": Measure("", "what it ran on"),
}


def measure(key: str) -> Measure:
    """Of a key of metrics.json; without unit and meaning if nothing is known of it."""
    return MEASURES.get(key, Measure("", ""))


def in_order(metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values as they are shown: the known ones first, digests not at all."""
    known = [key for key in MEASURES if key in metrics]
    rest = [key for key in metrics if key not in MEASURES and not key.endswith("_digest")]
    return [(key, metrics[key]) for key in [*known, *rest]]


def shown(key: str, value: Any) -> str:
    """A value as text, in the unit of `measure`; what is no number stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    unit = measure(key).unit
    if unit == "%":
        return f"{100 * value:.2f}"
    if unit == "dB":
        return f"{value:.2f}"
    return charts.number(value)


def read_metrics(workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """{stage: contents of its metrics.json}, of the stages that have one, in their order."""
    paths = epath.Path(workdir).glob("*/metrics.json")
    order = {stage: index for index, stage in enumerate(STAGES)}
    found = sorted(paths, key=lambda path: (order.get(path.parent.name, len(order)), path))
    return {path.parent.name: config.read_json(path) for path in found}


def write_summary(workdir: epath.PathLike) -> dict[str, dict[str, Any]]:
    """Writes summary.json, every stage's metrics in one place, and returns what it holds."""
    summary = read_metrics(workdir)
    config.write_json(epath.Path(workdir) / "summary.json", summary)
    return summary


def results_table(summary: dict[str, dict[str, Any]]) -> str:
    """A table of text: stage, measure, value and unit, aligned for a terminal."""
    rows = [("stage", "measure", "value", "unit")]
    for stage, metrics in summary.items():
        for index, (key, value) in enumerate(in_order(metrics)):
            name = "" if index else stage
            rows.append((name, key, shown(key, value), measure(key).unit))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])
