#!/usr/bin/env python3
"""Reckons how a meta-learning step scales to a cluster that is not at hand.

    tools/project_scaling.py                                    the full-size field, a v5e-256 and 64 GPUs
    tools/project_scaling.py --config=configs/imagenet.py --images=1,4,16 --json

A step on n devices takes the compute of a device's images and one all-reduce of the gradient, which nothing hides:

    seconds = 2 x multiply-adds x images / (peak x utilisation)
              + 2 (n - 1) / n x bytes / bandwidth + hops x latency

Multiply-adds are those of functa/operations.py, bytes are 4 a number of the field and its inner rates, which is what
the compiled step sends (tests/collectives_test.py). The same sum, its parts measured instead of assumed, is
the column `expected` of tools/bench_scaling.py. CLUSTERS holds what is assumed of the machines: published peaks and
bandwidths; utilisation and latency are guesses, to be replaced by what tools/bench_step.py measures there.

--json prints one object a row: cluster, devices, images (a device), step_seconds, allreduce_seconds, efficiency (by
the step without the all-reduce), images_per_second.
"""

import json
from typing import Any, NamedTuple

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from functa import command, operations, preflight
from functa.field import make_field
from functa.tasks import meta_learning


class Cluster(NamedTuple):
    """peak: float32 operations a second of a device, as JAX does them by default; utilisation: of it that the step
    reaches; bandwidth: bytes a second that a device sends in an all-reduce; hops: one after the other."""

    devices: int
    peak: float
    utilisation: float
    bandwidth: float
    hops: int
    hop_seconds: float


CLUSTERS = {
    # 197 TFLOP/s in bfloat16, JAX's default for float32 products on a TPU; 1,600 Gb/s of links; two rings of 16.
    "v5e-256": Cluster(256, 197e12, 0.2, 200e9, 2 * (15 + 15), 1e-6),
    # 67 TFLOP/s in float32 without tensor cores; a port of 400 Gb/s a GPU; a double binary tree.
    "64 x H100": Cluster(64, 67e12, 0.2, 50e9, 2 * 6, 5e-6),
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/cifar10_spatial.py:8x8x16,nearest", "Experiment.", lock_config=True
)
_IMAGES = flags.DEFINE_list("images", ["1", "8", "64"], "Images a device.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")


def allreduce_seconds(cluster: Cluster, numbers: int) -> float:
    """Of so many float32 numbers."""
    sent = 2 * (cluster.devices - 1) / cluster.devices * 4 * numbers
    return sent / cluster.bandwidth + cluster.hops * cluster.hop_seconds


def rows(config: ConfigDict, images: list[int]) -> list[dict[str, Any]]:
    """What the module's docstring says."""
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    field, loop = make_field(config), config.inner_loop
    of_image = operations.training(field, steps=loop.steps, second_order=loop.second_order)
    if cells := config.meta_learn.cells_per_image:
        of_image = of_image * cells // (field.latent_shape[0] * field.latent_shape[1])
    found = []
    for name, cluster in CLUSTERS.items():
        for count in images:
            compute = 2 * of_image * count / (cluster.peak * cluster.utilisation)
            reduce = allreduce_seconds(cluster, numbers)
            found.append(
                {
                    "cluster": name,
                    "devices": cluster.devices,
                    "images": count,
                    "step_seconds": compute + reduce,
                    "allreduce_seconds": reduce,
                    "efficiency": compute / (compute + reduce),
                    "images_per_second": cluster.devices * count / (compute + reduce),
                }
            )
    return found


def main(argv: list[str]) -> int:
    del argv
    config = _CONFIG.value
    problems = preflight.shapes(config) or meta_learning.check(config)
    if not _IMAGES.value or not all(word.isdecimal() and int(word) > 0 for word in _IMAGES.value):
        problems.append(f"--images={','.join(_IMAGES.value)}: want numbers from 1")
    if problems:
        return command.refuse("project_scaling", "\n".join(problems))
    found = rows(config, [int(word) for word in _IMAGES.value])
    if _JSON.value:
        for row in found:
            print(json.dumps(row))
        return 0
    for name, cluster in CLUSTERS.items():
        print(f"{name}: {cluster}")
    print(
        "\n| | devices | images a device | step | all-reduce | efficiency | images/s |\n"
        "|---|---|---|---|---|---|---|"
    )
    for row in found:
        print(
            f"| {row['cluster']} | {row['devices']} | {row['images']} | {1000 * row['step_seconds']:.3g} ms | "
            f"{1000 * row['allreduce_seconds']:.3g} ms | {row['efficiency']:.0%} | {row['images_per_second']:,.0f} |"
        )
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=command.parser("project_scaling", _CONFIG))
