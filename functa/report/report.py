"""report.html: the pictures, curves and numbers of a run on one self-contained page.

Everything is read from files that the stages leave in the run's folder; a section whose file is
absent is left out. `write_report` says which files and what they hold.
"""

import io
import math
import re
from typing import Any

import numpy as np
from etils import epath

from functa.report import (
    charts,
    field_sections,
    generation_sections,
    html,
)
from functa.report.html import Section, Tile, escape
from functa.report.metric_registry import (
    STAGES,
    in_order,
    measure,
    read_metrics,
    results_table,
    shown,
    write_summary,
)
from functa.runtime import image_io, storage
from functa.runtime.config import read_json
from functa.runtime.errors import DamagedFileError
from functa.training import progress

__all__ = ["results_table", "write_report", "write_summary"]

MOST_CLASSES = 30  # a larger confusion matrix is drawn as a picture, without its numbers
MOST_CONFUSED = 5  # pairs of classes told in words
# Curves whose names differ only by the split or by such an ending share a chart.
SPLIT = re.compile(r"(train|validation|test)[_/](.+)")
ENDING = re.compile(r"(.+)[_/](\d+|mean|min|max)")
TITLES = {  # the first charts of a stage, in this order; others follow under their own names
    "psnr": "PSNR, dB",
    "psnr_of_mean_mse": "PSNR of the mean error, dB",
    "accuracy": "accuracy",
    "top5_accuracy": "label among the five most likely",
    "r2": "target variance that the denoiser explains (R2)",
    "loss": "loss",
    "inner_loss": "loss after 0, 1, ... inner steps",
    "inner_lr": "inner rates",
    "inner_radius": "rates x curvature of the inner steps",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
}

Metrics = dict[str, dict[str, Any]]


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes report.html into a run's folder and returns its path.

    Reads, where present: config.json; environment.json; <stage>/metrics.json;
    <stage>/curves.json, {name: [[step, value], ...]}; and
    - meta_learn/report.npz: originals and reconstructions [n, h, w, c] float in [0, 1]; psnr and
      pca_psnr [N], of every test image; of the first originals: latents [n, i, j, d]; decoded_1x
      [m, h, w, c], decoded_4x [m, 4h, 4w, c], decoded_16x; and inner_steps
      [m, steps + 1, h, w, c], the image before the first inner step and after each.
    - classify/report.npz: confusion [k, k] int, rows the true classes; class_names [k], text.
    - generate/report.npz, all float in [0, 1]: samples [classes, n, h, w, c]; gaussian [m, h, w, c], of a
      Gaussian fitted to the latents; compared and nearest [m, h, w, c], samples and their nearest training images.

    Raises:
      ValueError: a file is damaged, or arrays do not fit together; the message has its path.
    """
    workdir = epath.Path(workdir)
    config = _optional_json(workdir / "config.json")
    environment = _optional_json(workdir / "environment.json")
    measured = read_metrics(workdir)
    sections = [
        _results(measured),
        *field_sections.sections(_field_arrays(workdir / "meta_learn" / "report.npz")),
        _curves(workdir, measured),
        _confusion(_label_arrays(workdir / "classify" / "report.npz")),
        *generation_sections.sections(_arrays(workdir / "generate" / "report.npz")),
        _tree("configuration", "Configuration", "Every setting of the run.", config),
        _tree("environment", "Environment", "What the run had under it.", environment),
    ]
    text = html.page(
        title=config.get("name") or workdir.name,
        lead=_lead(config),
        tiles=_tiles(measured),
        sections=[section for section in sections if section],
    )
    path = workdir / "report.html"
    if storage.is_remote(path):
        path.write_text(text)
        return path
    beside = workdir / "report.html.partial"
    beside.write_text(text)
    beside.replace(path)
    return path


def _optional_json(path: epath.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; none if it is absent."""
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise DamagedFileError(
            f"{path} is damaged ({error}); delete its folder to run that stage again, or the file to do "
            "without its pictures"
        ) from error


def _field_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path)
    if "originals" in arrays:
        originals = arrays["originals"].shape
        fitted = arrays["reconstructions"].shape if "reconstructions" in arrays else originals
        if fitted != originals:
            raise ValueError(f"{path}: reconstructions {fitted} of originals {originals}")
        if "inner_steps" in arrays and len(arrays["inner_steps"]) > originals[0]:
            raise ValueError(
                f"{path}: inner_steps of {len(arrays['inner_steps'])} images, but only "
                f"{originals[0]} originals"
            )
    return arrays


def _label_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path)
    if "confusion" in arrays:
        shape = arrays["confusion"].shape
        names = arrays.get("class_names", np.arange(shape[0]))
        if shape != (len(names), len(names)):
            raise ValueError(f"{path}: confusion {shape}, but {len(names)} class names")
    return arrays


def _lead(config: dict[str, Any]) -> str:
    image = config.get("data", {}).get("image_shape")
    latent = config.get("field", {}).get("latent_shape")
    if not image or not latent:
        return "Images stored as functions: one field that all share, and latents for each."
    return (
        f"Images of {html.leaf(image)}, each stored as a function: {html.leaf(latent)} latents of "
        f"its own, {math.prod(latent):,} numbers, read by one field that all images share."
    )


def _tiles(measured: Metrics) -> list[Tile]:
    tiles = []
    learned, encoded, classified, generated = (measured.get(stage, {}) for stage in STAGES)
    if "psnr" in learned:
        label = "PSNR of test images"
        if "pca_psnr" in learned:
            label += f"; PCA: {shown('pca_psnr', learned['pca_psnr'])}"
        tiles.append(Tile(shown("psnr", learned["psnr"]), "dB", label))
    if "accuracy" in classified:
        label = "accuracy on test latents"
        if "accuracy_standard_error" in classified:
            label += f", ± {shown('accuracy', classified['accuracy_standard_error'])}"
        tiles.append(Tile(shown("accuracy", classified["accuracy"]), "%", label))
    if "label_agreement" in generated:
        value = shown("label_agreement", generated["label_agreement"])
        tiles.append(Tile(value, "%", "of generated samples are seen as the class asked for"))
    if "latent_bytes" in encoded:
        size = shown("latent_bytes", encoded["latent_bytes"])
        tiles.append(Tile(size, "bytes", "of latents for each image"))
    seconds = [metrics["seconds"] for metrics in measured.values() if "seconds" in metrics]
    if seconds:
        value, unit = progress.duration(sum(seconds)).split(" ")
        devices = dict.fromkeys(str(one["device"]) for one in measured.values() if "device" in one)
        label = "all stages" + (f" on {', '.join(devices)}" if devices else "")
        tiles.append(Tile(value, unit, label))
    return tiles


def _results(measured: Metrics) -> Section | None:
    body = ""
    for stage, metrics in measured.items():
        told = [progress.duration(metrics["seconds"])] if "seconds" in metrics else []
        told += [str(metrics["device"])] if "device" in metrics else []
        rows = "".join(
            f'<tr><td>{escape(key)}</td><td class="value">{escape(shown(key, value))}</td>'
            f'<td class="unit">{escape(measure(key).unit)}</td>'
            f'<td class="meaning">{escape(measure(key).meaning)}</td></tr>'
            for key, value in in_order(metrics)
            if key != "device"  # it stands above the table
        )
        body += (
            f'<table class="results"><caption>{escape(stage)} <span>{escape(" on ".join(told))}'
            f"</span></caption><tbody>{rows}</tbody></table>"
        )
    lead = "Measured on the whole test split unless named otherwise."
    return Section("results", "Results", lead, body) if body else None


def _curves(workdir: epath.Path, measured: Metrics) -> Section | None:
    body = ""
    paths = {path.parent.name: path for path in sorted(workdir.glob("*/curves.json"))}
    for stage in dict.fromkeys([*(stage for stage in measured if stage in paths), *paths]):
        drawn = ""
        for title, series in group_curves(read_json(paths[stage])).items():
            baseline = measured.get(stage, {}).get("pca_psnr") if title == "psnr" else None
            entries = [
                f"{one.label}: {charts.number(one.y[-1])}".removeprefix(": ") for one in series
            ]
            legend = html.legend(
                entries, reference="" if baseline is None else f"PCA: {baseline:.2f}"
            )
            title = TITLES.get(title, title.replace("_", " "))
            chart = charts.line_chart(
                series, x_label="step", description=f"{stage}: {title}", reference=baseline
            )
            drawn += html.chart(title, legend, chart)
        body += f'<h3>{escape(stage)}</h3><div class="charts">{drawn}</div>'
    lead = "Over the optimiser's steps; the number beside a name is the last one."
    return Section("curves", "Training", lead, body) if body else None


def group_curves(curves: dict[str, list[list[float]]]) -> dict[str, list[charts.Series]]:
    """Curves by the chart they share: validation_psnr and psnr in one, inner_lr_min with its max."""
    groups: dict[str, list[charts.Series]] = {}
    for name, points in curves.items():
        if not points:
            continue
        title, label = name, ""
        for pattern, title_group, label_group in ((SPLIT, 2, 1), (ENDING, 1, 2)):
            if found := pattern.fullmatch(title):
                title, label = found[title_group], f"{label} {found[label_group]}".strip()
        x, y = zip(*points, strict=True)
        groups.setdefault(title, []).append(charts.Series(label, x, y))
    known = [title for title in TITLES if title in groups]
    groups = {title: groups[title] for title in dict.fromkeys([*known, *groups])}
    for series in groups.values():
        if len(series) > 1:  # beside others, the curve without a split is of training
            series[:] = [one._replace(label=one.label or "train") for one in series]
    return groups


def _confusion(arrays: dict[str, np.ndarray]) -> Section | None:
    if "confusion" not in arrays:
        return None
    counts = arrays["confusion"]
    k = len(counts)
    names = [str(name) for name in arrays.get("class_names", np.arange(k))]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    body = _matrix(counts, shares, names)
    wrong = np.where(np.eye(k, dtype=bool), 0, counts)
    pairs = [divmod(int(place), k) for place in np.argsort(-wrong, axis=None, kind="stable")]
    told = [
        f"{escape(names[a])} taken for {escape(names[b])}: {counts[a, b]:,} ({shares[a, b]:.1%})"
        for a, b in pairs[:MOST_CONFUSED]
        if wrong[a, b]
    ]
    if told:
        body += f'<p class="note">Most frequent: {"; ".join(told)}.</p>'
    right, total = int(np.trace(counts)), int(counts.sum())
    lead = (
        f"{right:,} of {total:,} test examples right. A row is a true class, a column the answer."
    )
    return Section("confusion", "Confusion matrix", lead, body)


def _matrix(counts: np.ndarray, shares: np.ndarray, names: list[str]) -> str:
    """A table with a number in every coloured cell, or a picture where there are too many."""
    if len(names) > MOST_CLASSES:
        signs = np.where(np.eye(len(names), dtype=bool), -1, 1)
        picture = html.image(image_io.diverging(shares * signs, 1.0), alt="confusion matrix")
        return f'<div class="matrix">{picture}</div>'
    upright = ' class="upright"' if max(len(name) for name in names) > 3 else ""
    head = "".join(f"<th{upright}><span>{escape(name)}</span></th>" for name in names)
    rows = ""
    for a, name in enumerate(names):
        cells = ""
        for b, count in enumerate(counts[a].tolist()):
            alpha = math.sqrt(shares[a, b])  # so that one mistake in a hundred can be seen
            kinds = ["right" if a == b else "wrong"] + ["none"] * (not count)
            kinds += ["strong"] * (alpha > 0.55)
            cells += f'<td class="{" ".join(kinds)}" style="--a:{alpha:.2f}">{count}</td>'
        rows += f'<tr><th>{escape(name)}</th>{cells}<td class="recall">{shares[a, a]:.1%}</td></tr>'
    return (
        '<div class="scroll"><table class="confusion"><thead><tr><th></th>'
        f"{head}<th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _tree(anchor: str, title: str, lead: str, values: dict[str, Any]) -> Section | None:
    return Section(anchor, title, lead, html.tree(values, unfold=False)) if values else None
