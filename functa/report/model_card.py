"""The model card of an exported model."""

from functa.pipeline.trained_run import TrainedRun
from functa.report import metric_registry
from functa.runtime import config as config_lib

_CARD = """# {name}

A field of images {image_shape} with latents {latent_shape}{parts}.

## Data

{data}

## Training

- config: {name}; `config.json` has all settings
- commit: {commit}
- hardware: {hardware}
- versions: {versions}

## Metrics

`functa/report/metric_registry.py` describes the keys.

{metrics}
"""
_PARTS = {"classify": "a classifier", "generate": "a generator"}


def model_card(run: TrainedRun) -> str:
    """Markdown: data, training and metrics of a run. Source and licence of the data are not known here."""
    data, environment = run.config.data, config_lib.read_json(run.workdir / "environment.json")
    tables = []
    for stage, metrics in run.metrics.items():
        tables += [f"| {stage} | value | unit |", "|---|---|---|"]
        for key, value in metric_registry.ordered(metrics):
            unit = metric_registry.metric(key).unit
            tables.append(f"| {key} | {metric_registry.format_value(key, value)} | {unit} |")
        tables.append("")
    return _CARD.format(
        name=run.config.name,
        image_shape="x".join(map(str, run.image_shape)),
        latent_shape="x".join(map(str, run.latent_shape)),
        parts="".join(f", {text}" for stage, text in _PARTS.items() if stage in run.metrics),
        data=f"{data.name}, {data.num_classes} classes.",
        commit=environment["commit"],
        hardware=f"{environment['processor']}; {environment['devices']}",
        versions=", ".join(f"{key} {value}" for key, value in environment["packages"].items()),
        metrics="\n".join(tables).rstrip(),
    )
