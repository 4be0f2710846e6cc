#!/usr/bin/env python3
"""Prints what runs of CIFAR-10 reached beside what others report.

    python -m tools.experiments.cifar10_table DIR      a directory of runs, as tools/reproduce_cifar10.sh makes it

Published numbers: spatial functa (Bauer et al. 2023) and functa as restated by LH-NeF (arXiv
2606.08204, tables 2 and 17); samuelepapa/spatial_functa from its repository, accuracy on validation
images. The distance of samples is Fréchet's, of the features that its row names; papers' FIDs, of Inception
features, are no match for it. Exit status: 0; 2 where DIR holds no complete run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Published(NamedTuple):
    """PSNR in dB and top-1 in % of the paper and of samuelepapa/spatial_functa; None: not known."""

    paper: tuple[float | None, float | None]
    code: tuple[float | None, float | None]


PUBLISHED = {
    (8, 8, 16): Published((39.0, 90.3), (33.1, None)),
    (4, 4, 64): Published((None, None), (32.6, None)),
    (1, 1, 256): Published((None, None), (27.16, 65.9)),
    (1, 1, 512): Published((None, None), (31.62, 67.2)),
    (1, 1, 1024): Published((38.1, 68.3), (38.19, 66.6)),
}


def rows(directory: Path) -> list[tuple[str, ...]]:
    """A header and a row for every run below `directory` whose stage meta_learn is complete."""
    table: list[tuple[str, ...]] = [
        (
            "latents",
            "field",
            "trained",
            "ours: dB",
            "%",
            "distance (a Gaussian's), of",
            "PCA: dB",
            "paper: dB",
            "%",
            "code: dB",
            "%",
        )
    ]

    def number(value: float | None, scale: float = 1.0) -> str:
        return "" if value is None else f"{scale * value:.2f}"

    for path in sorted(directory.glob("*/meta_learn/metrics.json")):
        run = path.parent.parent
        whole = json.loads((run / "config.json").read_text())
        config, batch_size = whole["field"], whole["meta_learn"]["batch_size"]
        field = json.loads(path.read_text())
        labels = run / "classify" / "metrics.json"
        accuracy = json.loads(labels.read_text())["accuracy"] if labels.exists() else None
        samples = run / "generate" / "metrics.json"
        distance = _distance(json.loads(samples.read_text())) if samples.exists() else ""
        nothing = (None, None)
        latents = config["latent_shape"]
        others = PUBLISHED.get(tuple(latents), Published(nothing, nothing))
        table.append(
            (
                "x".join(map(str, latents)),
                f"{config['interpolation']}, {config['map']}, upsampling {config.get('upsampling', 1)}, "
                f"width {config['width']}",
                f"{field['steps']} x {batch_size}, {field['test_images']} test images",
                number(field["psnr"]),
                number(accuracy, 100),
                distance,
                number(field["pca_psnr"]),
                *(number(value) for value in others.paper),
                *(number(value) for value in others.code),
            )
        )
    return table


def _distance(metrics: dict[str, Any]) -> str:
    """Of samples from test images, and of a Gaussian of the latents: 0.90 (4.49), cnn."""
    ours, gaussian = metrics["frechet_distance"], metrics["frechet_gaussian"]
    return f"{ours:.2f} ({gaussian:.2f}), {metrics['frechet_features']}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="directory of runs")
    args = parser.parse_args(argv)
    table = rows(args.directory)
    if len(table) == 1:
        parser.error(f"{args.directory} holds no run whose stage meta_learn is complete")
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        print("| " + " | ".join(cells) + " |")
        if row is table[0]:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
