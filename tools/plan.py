#!/usr/bin/env python3
"""Projects what each stage of a config costs on a cluster that is not at hand.

    tools/plan.py cifar10_spatial v5e-256 --config.meta_learn.batch_size=2048
    tools/plan.py cifar10_spatial:8x8x16,one_gpu 8xH100 --nocompile --json
    tools/plan.py cifar10_spatial cpu:2 --config.data.image_shape="(64, 64, 3)" --utilisation=0.3

NAME[:OPTIONS] is a config of configs/, TOPOLOGY a chip and a number: TPU slices by Google's names (v5e-256, v5p-128,
v6e-64), GPUs as 64xH100, simulated devices as cpu:2. Both come before the flags.
functa/clusters.py has their published numbers,
functa/plan.py says how hours come of them. Everything that is assumed is printed first, and a flag changes it.
Batches must suit the devices, as in a run: what does not is told, exit status 2.

Programs are compiled, a device's share of each, by the compiler for CPUs: what they need of memory is near to what
another compiler makes of them, not equal (tools/compile_for.py has the TPU's). --nocompile leaves that out.

--json prints one object: cluster, devices, hosts, chip, config, assumptions, images, stages: [the attributes of
costs.Stage, step_seconds, hours, limit], hours, device_hours, storage_bytes.
"""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import plan_table
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from functa.pipeline import validation
from functa.pipeline.stages import STAGES
from functa.plan import hardware, memory_traffic
from functa.plan.costs import Assumptions, Stage
from functa.plan.hardware import Cluster
from functa.plan.plan import Planner
from functa.runtime import cli_errors

# As published with each set.
IMAGES = {
    "digits": (1437, 360),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
    "imagenet2012": (1_281_167, 50_000),
    "imagenet_resized": (1_281_167, 50_000),
}

# Seconds of an image and of each of its pixels, PNG, two cores: docs/PERFORMANCE.md, "Start".
_DECODE_IMAGE, _DECODE_PIXEL = 50e-6, 13e-9

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_IMAGES = flags.DEFINE_list("images", None, "TRAIN,TEST of the data set; as published.")
_UTILISATION = flags.DEFINE_float(
    "utilisation", None, "Of the chip's peak, in products; that of functa/clusters.py."
)
_DECODE = flags.DEFINE_float(
    "decode_rate", None, "Images that a host decodes a second; that of two cores, PNG."
)
_IMAGE_BYTES = flags.DEFINE_float(
    "image_bytes", None, "Of a stored image; its pixels, not compressed."
)
_STORAGE = flags.DEFINE_float(
    "storage_bandwidth", 200e6, "Bytes a second between a host and storage."
)
_COMPILE = flags.DEFINE_bool("compile", True, "Compile a device's programs for their memory.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def splits_of(config: ConfigDict, images: list[str] | None) -> dict[str, int]:
    """Images of train, validation and test.

    Raises:
      ValueError: nobody says how many there are, or what is said means nothing.
    """
    data = config.data
    name = data.name.split(":")[0].split("/")[0]
    if images is not None:
        if len(images) != 2 or not all(word.isdecimal() and int(word) > 0 for word in images):
            raise ValueError(f"--images={','.join(images)}: want TRAIN,TEST, numbers from 1")
        train, test = map(int, images)
    elif name in IMAGES and "[" not in data.train_split + data.test_split:
        train, test = IMAGES[name]
    else:
        raise ValueError(
            f"how many images {data.name} has in {data.train_split} and {data.test_split} is not known here: give "
            "--images=TRAIN,TEST"
        )
    if not 0 < data.validation_examples < train:
        raise ValueError(
            f"data.validation_examples={data.validation_examples} must be from 1 to {train - 1}"
        )
    found = {
        "train": train - data.validation_examples,
        "validation": data.validation_examples,
        "test": test,
    }
    most = data.max_examples or train + test
    return {split: min(count, most) for split, count in found.items()}


def assumptions_of(config: ConfigDict, cluster: Cluster) -> Assumptions:
    """Of the flags.

    Raises:
      ValueError: a number that cannot be.
    """
    utilisation, image_bytes, rate = _UTILISATION.value, _IMAGE_BYTES.value, _DECODE.value
    h, w, _ = config.data.image_shape
    found = Assumptions(
        utilisation=cluster.chip.utilisation if utilisation is None else utilisation,
        decode_rate=1 / (_DECODE_IMAGE + h * w * _DECODE_PIXEL) if rate is None else rate,
        image_bytes=math.prod(config.data.image_shape) if image_bytes is None else image_bytes,
        storage_bandwidth=_STORAGE.value,
    )
    problems = [
        f"--{name}={value:g} must be above 0"
        for name, value in found._asdict().items()
        if not 0 < value < math.inf
    ]
    if found.utilisation > 1:
        problems.append(f"--utilisation={found.utilisation:g} must be at most 1")
    if problems:
        raise ValueError("\n".join(problems))
    return found


def report(planner: Planner, stages: list[Stage]) -> dict[str, Any]:
    """What --json prints."""
    cluster = planner.cluster
    rows = []
    for stage in stages:
        row = dataclasses.asdict(stage)
        row |= {"cost": stage.cost._asdict(), "program": stage.program and stage.program._asdict()}
        rows.append(
            row | {"step_seconds": stage.step_seconds, "hours": stage.hours, "limit": stage.limit}
        )
    hours = sum(stage.hours for stage in stages)
    return {
        "cluster": cluster.name,
        "devices": cluster.devices,
        "hosts": cluster.hosts,
        "chip": cluster.chip._asdict(),
        "config": planner.config.name,
        "assumptions": planner.assumptions._asdict(),
        "images": planner.splits,
        "stages": rows,
        "hours": hours,
        "device_hours": hours * cluster.devices,
        "storage_bytes": sum(stage.storage_bytes for stage in stages),
    }


def plan_of(config: ConfigDict, topology: str) -> Planner:
    """The planner that the flags ask for.

    Raises:
      ValueError: what cannot be, in the flags and in a run of this config there; all of it, where topology and mesh
        can be.
    """
    problems, found = [], []

    def attempt(function: Callable[..., Any], *args: Any) -> None:
        try:
            found.append(function(*args))
        except ValueError as error:
            problems.extend(str(error).splitlines())

    stages = tuple(name for entry in config.stages for name in str(entry).split(","))
    if not stages or set(stages) - set(STAGES):
        problems.append(f"config.stages={stages}: known are {', '.join(STAGES)}")
    cluster = hardware.parse(topology)
    mesh = memory_traffic.described_mesh(config, cluster.devices)
    own, cell = min(cluster.devices, cluster.chip.per_host), mesh.shape["cell"]
    if own % cell:
        problems.append(f"mesh.cell={cell}: the {own} devices of a host must be a multiple of it")
    jax.config.update("jax_num_cpu_devices", math.prod(memory_traffic.simulated(mesh).values()))
    attempt(splits_of, config, _IMAGES.value)
    attempt(assumptions_of, config, cluster)
    problems += validation.validate(config, None, stages=stages, mesh=mesh)
    if problems:
        raise ValueError("\n".join(problems))
    return Planner(config, cluster, *found, stages=stages, compiles=_COMPILE.value)


def main(argv: list[str]) -> int:
    del argv
    config = _CONFIG.value
    if config is None or len(_TOPOLOGY) != 1:
        return cli_errors.report_user_error(
            "plan", "want NAME[:OPTIONS] TOPOLOGY, as cifar10_spatial v5e-256"
        )
    jax.config.update("jax_platforms", "cpu")  # no program is run
    try:
        planner = plan_of(config, _TOPOLOGY[0])
    except ValueError as error:
        return cli_errors.report_user_error("plan", str(error))
    stages = planner.stages()
    told = report(planner, stages)
    if _JSON.value:
        print(json.dumps(told))
    else:
        print("\n".join(plan_table.lines(planner, stages, told)))
    return 0


def words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(what absl parses, what stands before the first flag and is no config)."""
    first = next((k for k, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    named, rest = arguments[:first], arguments[first:]
    if named:
        name, colon, options = named[0].partition(":")
        path = name if name.endswith(".py") else f"configs/{pathlib.Path(name).name}.py"
        rest = [f"--config={path}{colon}{options}", *rest]
    return rest, named[1:]


_TOPOLOGY: list[str] = []

if __name__ == "__main__":
    sys.argv[1:], _TOPOLOGY[:] = words(sys.argv[1:])
    app.run(main, flags_parser=cli_errors.flags_parser("plan", _CONFIG))
