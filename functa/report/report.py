"""report.html: one self-contained page with the results, images and curves of a run.

The page needs no script, no network and no other file. Its layout and texts are in
report.html.jinja; this module reads the files of the run and computes the template's variables.
"""

import io
import math
import re
from typing import Any

import jinja2
import numpy as np
from etils import epath

from functa.report import charts, classification_sections, field_sections, generation_sections
from functa.report.metric_registry import (
    STAGES,
    Summary,
    format_number,
    format_value,
    metric,
    ordered,
    read_metrics,
)
from functa.runtime import image_io, storage
from functa.runtime.config import read_json
from functa.runtime.errors import DamagedFileError
from functa.training import progress

# Curves of one group share a chart.
CURVE_NAME = re.compile(
    r"((?P<split>train|validation|test)[_/])?(?P<group>.+?)([_/](?P<suffix>\d+|mean|min|max))?"
)
HEADLINE = (  # stage, metric key, label with other metrics of that stage
    ("meta_learn", "psnr", "PSNR of test images; PCA: {pca_psnr}"),
    ("classify", "accuracy", "accuracy on test latents, ± {accuracy_standard_error}"),
    ("generate", "label_agreement", "of samples are classified as their label"),
    ("encode", "latent_bytes", "of latents per image"),
)
CHART_TITLES = {  # in display order; the charts of other curves follow
    "psnr": "PSNR, dB",
    "psnr_of_mean_mse": "PSNR of the mean squared error, dB",
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "r2": "R2 of the denoiser",
    "loss": "loss",
    "inner_loss": "loss before each inner step and after the last",
    "inner_lr": "inner learning rates",
    "inner_radius": "spectral radius of inner learning rates × curvature",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
}


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes report.html into a run directory and returns its path.

    Reads config.json, environment.json, <stage>/metrics.json and, where present:
    - <stage>/curves.json: {name: [[step, value], ...]}.
    - meta_learn/report.npz: the arrays of evaluation.field_arrays; psnr, pca_psnr [n] of all test images.
    - classify/report.npz: confusion [k, k] int, rows are true classes; class_names [k] text.
    - generate/report.npz: samples [classes, n, h, w, c]; gaussian [m, h, w, c], samples of a Gaussian
      fitted to the latents; compared and nearest [m, h, w, c], samples and their nearest training images;
      guidance_sweep_{scale, label_agreement, kernel_distance, standard_error} [s], over guidance scales; the
      arrays of evaluation.generation_arrays. Images are floats in [0, 1].

    Raises:
      DamagedFileError: a file cannot be read.
    """
    workdir = epath.Path(workdir)
    config = _read_optional_json(workdir / "config.json")
    metrics = read_metrics(workdir)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("functa.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": image_io.data_uri,
        "format_setting": format_setting,
        "product": math.prod,
    }
    arrays = {stage: _read_arrays(workdir / stage / "report.npz") for stage in STAGES}
    text = environment.get_template("report.html.jinja").render(
        name=config.get("name") or workdir.name,
        config=config,
        environment=_read_optional_json(workdir / "environment.json"),
        headline=headline(metrics),
        results=[results(stage, metrics[stage]) for stage in metrics],
        training=training_charts(workdir, metrics),
        field=field_sections.sections(arrays["meta_learn"]),
        classifier=classification_sections.sections(arrays["classify"]),
        generator=generation_sections.sections(arrays["generate"]),
    )
    path = workdir / "report.html"
    if storage.is_remote(path):  # an object is written whole or not at all
        path.write_text(text)
        return path
    partial = workdir / "report.html.partial"
    partial.write_text(text)
    partial.replace(path)
    return path


def _read_optional_json(path: epath.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; {} if it does not exist."""
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zipfile, zlib and NumPy raise errors of their own
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete its directory to run that stage again, or delete the "
            "file to write a report without its images"
        ) from error


def format_setting(value: Any) -> str:
    """A value of the config as text; a list of numbers as 8 × 8 × 16."""
    if isinstance(value, list | tuple):
        is_shape = all(isinstance(item, int | float) for item in value)
        return (" × " if is_shape else ", ").join(format_setting(item) for item in value)
    return '""' if value == "" else str(value)


def headline(metrics: Summary) -> list[tuple[str, str, str]]:
    """(value, unit, label) of the most important metrics and of the total duration."""
    numbers = []
    for stage, key, label in HEADLINE:
        if key in metrics.get(stage, {}):
            texts = {name: format_value(name, value) for name, value in metrics[stage].items()}
            numbers.append((texts[key], metric(key).unit, label.format(**texts)))
    if metrics:
        stages = metrics.values()
        value, unit = progress.duration(sum(stage["seconds"] for stage in stages)).split(" ")
        devices = dict.fromkeys(stage["device"] for stage in stages)
        numbers.append((value, unit, f"all stages on {', '.join(devices)}"))
    return numbers


def results(stage: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Duration, devices and metrics of a stage; rows are (key, value, unit, description)."""
    return {
        "stage": stage,
        "note": f"{progress.duration(metrics['seconds'])} on {metrics['device']}",
        "rows": [
            (key, format_value(key, value), *metric(key))
            for key, value in ordered(metrics)
            if key != "device"
        ],
    }


def training_charts(workdir: epath.Path, metrics: Summary) -> dict[str, list[str]]:
    """Charts of the curves of each stage that has any, by stage."""
    result = {}
    for stage, values in metrics.items():
        groups = group_curves(_read_optional_json(workdir / stage / "curves.json"))
        psnr = values.get("pca_psnr")
        references = {} if psnr is None else {"psnr": (f"PCA: {psnr:.2f}", psnr)}
        svgs = [
            charts.line_chart(
                series,
                title=CHART_TITLES.get(group, group.replace("_", " ")),
                x_label="step",
                reference=references.get(group),
            )
            for group, series in groups.items()
        ]
        if svgs:
            result[stage] = svgs
    return result


def group_curves(curves: dict[str, list[list[float]]]) -> dict[str, list[charts.Series]]:
    """Curves by chart: validation_psnr with psnr, inner_lr_min with inner_lr_max.

    The label of a curve is its split or suffix and its last value.
    """
    groups: dict[str, list[tuple[str, list[list[float]]]]] = {}
    for name, points in curves.items():
        match = CURVE_NAME.fullmatch(name)
        if match and points:
            label = " ".join(filter(None, (match["split"], match["suffix"])))
            groups.setdefault(match["group"], []).append((label, points))
    result = {}
    for group in [*CHART_TITLES, *groups]:
        if group in result or group not in groups:
            continue
        # Among several curves, the one without a split is of training.
        default = "train" if len(groups[group]) > 1 else ""
        result[group] = [_series(label or default, points) for label, points in groups[group]]
    return result


def _series(label: str, points: list[list[float]]) -> charts.Series:
    x, y = zip(*points, strict=True)
    return charts.Series(": ".join(filter(None, (label, format_number(y[-1])))), x, y)
