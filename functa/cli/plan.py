"""`functa plan`: projects time, memory and storage of a config on other hardware."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from functa.pipeline import validation
from functa.pipeline.config_files import load_config
from functa.pipeline.stages import STAGES
from functa.plan import hardware, table
from functa.plan.cost import Assumptions, StagePlan
from functa.plan.hardware import Chip, Cluster
from functa.plan.programs import Programs
from functa.plan.stages import Planner, smallest_mesh
from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Projects what the stages of a config cost on hardware that is not at hand.

  functa plan cifar10_spatial v5e-256 --config.meta_learn.batch_size=2048
  functa plan cifar10_spatial:8x8x16,one_gpu 8xH100 8xA100 v5e-8
  functa plan digits:tiny cpu:2 --compile --json

CONFIG is a name in configs/ or a path. HARDWARE is a chip and a number: v5e-256, v5p-128 or v6e-64 as
Google names them, 64xH100, or cpu:2. One HARDWARE gives a table of the stages. Several, by default one
host of each chip, give a table with one row each. --config.KEY=VALUE sets a key of the config.

The programs are traced, not run: multiply-adds and traffic between devices are exact. Times are
projections from the published peaks in functa/plan/hardware.py and from the assumptions that are
printed first.

--json prints a list with one object per HARDWARE."""
CONFIG_OVERRIDES = True

# Images of train and test, as published with each data set.
DATA_SETS = {
    "digits": (1437, 360),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "imagenet2012": (1_281_167, 50_000),
    "imagenet_resized": (1_281_167, 50_000),
}
# Seconds per PNG image and pixel on two cores: docs/PERFORMANCE.md, "Start".
_DECODE_IMAGE, _DECODE_PIXEL = 50e-6, 13e-9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG[:OPTIONS]")
    parser.add_argument("hardware", metavar="HARDWARE", nargs="*")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the programs for their memory: by libtpu for a TPU, if it is installed, else by the "
        "compiler for CPUs, whose memory is only similar to that of other devices",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="compile and run a step of each stage on this machine's devices, which HARDWARE must describe",
    )
    parser.add_argument(
        "--check", action="store_true", help="only check the config for the devices of HARDWARE"
    )
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    flags: dict[str, tuple[str, Any, str]] = {
        "images": ("TRAIN,TEST", two_counts, "images of the data set (default: as published)"),
        "utilization": ("FRACTION", fraction, "of the peak reached in matrix products (default: the chip's)"),
        "decode-rate": ("N", positive, "images per second that a host decodes (default: PNG on two cores)"),
        "image-bytes": ("N", positive, "size of a stored image (default: uncompressed)"),
        "storage-bandwidth": ("N", positive, "bytes per second between a host and storage (default: 200e6)"),
    }  # fmt: skip
    for name, (metavar, kind, text) in flags.items():
        parser.add_argument(f"--{name}", metavar=metavar, type=kind, help=text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def fraction(text: str) -> float:
    """A number above 0, at most 1."""
    if (value := positive(text)) > 1:
        raise ValueError
    return value


def two_counts(text: str) -> tuple[int, int]:
    """Two positive integers."""
    first, second = map(int, text.split(","))
    if min(first, second) < 1:
        raise ValueError
    return first, second


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.config_overrides)
    clusters = [hardware.parse(name) for name in args.hardware or hardware.ONE_HOST_EACH]
    if args.measure and len(clusters) > 1:
        raise UserError("--measure needs one HARDWARE, the name of this machine's devices")
    with as_user_errors():
        meshes = [cluster.mesh(**config.mesh) for cluster in clusters]
    count = clusters[0].devices
    if not args.measure:
        jax.config.update("jax_platforms", "cpu")
        count = max(math.prod(smallest_mesh(mesh.shape).values()) for mesh in meshes)
    with contextlib.suppress(RuntimeError):  # the devices are fixed if JAX has started
        jax.config.update("jax_num_cpu_devices", count)
    stages = [name for entry in config.stages for name in str(entry).split(",") if name]
    if not stages or set(stages) - set(STAGES):
        raise UserError(f"config.stages={stages}: known stages are {', '.join(STAGES)}")
    problems = [
        f"{cluster.name}: {problem}"
        for cluster, mesh in zip(clusters, meshes, strict=True)
        for problem in validation.validate(config, None, stages=stages, mesh=mesh)
    ]
    if problems:
        raise UserError("\n".join(problems))
    if args.check:
        print(f"{config.name} is valid for {', '.join(cluster.name for cluster in clusters)}")
        return 0
    programs = Programs(config)
    planners = [_planner(args, programs, cluster, stages) for cluster in clusters]
    plans = [planner.plan() for planner in planners]
    if args.json:
        print(json.dumps([report(*pair) for pair in zip(planners, plans, strict=True)]))
        return 0
    if len(plans) == 1:
        lines = table.stage_table(clusters[0], plans[0])
    else:
        lines = table.cluster_table(list(zip(clusters, plans, strict=True)))
    print("\n".join([*table.preface(planners), "", *lines]))
    return 0


def _planner(
    args: argparse.Namespace, programs: Programs, cluster: Cluster, stages: Sequence[str]
) -> Planner:
    compiles, data = args.compile or args.measure, programs.config.data
    return Planner(
        programs,
        cluster,
        splits=split_sizes(data, args.images),
        assumptions=assumptions(args, data.image_shape, cluster.chip),
        stages=stages,
        devices=devices_of(cluster, measure=args.measure) if compiles else None,
        measure=args.measure,
    )


def split_sizes(settings: ConfigDict, images: tuple[int, int] | None) -> dict[str, int]:
    """Images of train, validation and test.

    Args:
      data: config.data.
      images: images of the data set's train and test splits; None for the published numbers.
    Raises:
      UserError: the size of the data set is unknown, or too small for the validation split.
    """
    if images is None:
        images = DATA_SETS.get(settings.name.split(":")[0].split("/")[0])
        if images is None or "[" in settings.train_split + settings.test_split:
            raise UserError(
                f"the number of images of {settings.name} in {settings.train_split} and {settings.test_split} is "
                "unknown: add --images=TRAIN,TEST"
            )
    count = settings.validation_examples
    if not 0 < count < images[0]:
        raise UserError(f"data.validation_examples={count} must be from 1 to {images[0] - 1}")
    sizes = {"train": images[0] - count, "validation": count, "test": images[1]}
    return {split: min(size, settings.max_examples or size) for split, size in sizes.items()}


def assumptions(args: argparse.Namespace, image_shape: Sequence[int], chip: Chip) -> Assumptions:
    """The flags, or their defaults."""
    h, w, c = image_shape
    return Assumptions(
        utilization=args.utilization or chip.utilization,
        decode_rate=args.decode_rate or 1 / (_DECODE_IMAGE + h * w * _DECODE_PIXEL),
        image_bytes=args.image_bytes or h * w * c,
        storage_bandwidth=args.storage_bandwidth or 200e6,
    )


def devices_of(cluster: Cluster, *, measure: bool) -> Sequence[jax.Device]:
    """Devices to compile for: TPUs that libtpu describes, or those of this machine.

    Raises:
      UserError: `measure` is set and this machine has another number of devices, or libtpu does not
        know the slice.
    """
    if measure and jax.device_count() != cluster.devices:
        raise UserError(
            f"--measure: {cluster.name} has {cluster.devices} devices, this machine {jax.device_count()}"
        )
    if measure or not cluster.topology or not importlib.util.find_spec("libtpu"):
        return jax.devices()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not search for TPUs in this machine
    try:
        return topologies.get_topology_desc(cluster.topology, "tpu").devices
    except Exception as error:  # libtpu raises errors of many types
        raise UserError(
            f"libtpu cannot describe {cluster.name} ({cluster.topology}): {error}"
        ) from error


def report(planner: Planner, stages: Sequence[StagePlan]) -> dict[str, Any]:
    """The JSON object of a cluster."""
    cluster = planner.cluster
    properties = ("step_seconds", "seconds", "limit")  # asdict() has fields only
    return {
        "hardware": cluster.name,
        "devices": cluster.devices,
        "hosts": cluster.hosts,
        "chip": cluster.chip._asdict(),
        "config": planner.config.name,
        "assumptions": planner.assumptions._asdict(),
        "images": planner.splits,
        "stages": [
            dataclasses.asdict(stage) | {name: getattr(stage, name) for name in properties}
            for stage in stages
        ],
        "seconds": sum(stage.seconds for stage in stages),
    }
