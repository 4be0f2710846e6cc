#!/usr/bin/env python3
"""Compiles a config's programs for a machine that is not there: memory of a device, what devices send.

    tools/compile_for.py cpu:8 --config=configs/cifar10_spatial.py:8x8x16,nearest
    tools/compile_for.py v5e:16x16 --config=configs/cifar10_spatial.py --config.meta_learn.batch_size=1024

TOPOLOGY is cpu:N, N simulated CPU devices, or a TPU slice by its generation and shape (v4:2x2x2, v5e:4x4,
v5p:4x4x4, v6e:16x16). For TPUs the package libtpu must be installed (launch/environment.sh tpu); no TPU is
needed. The numbers for CPU devices are those of another compiler: collectives are alike, memory is not.

Two programs: the training step of meta_learn, on config.meta_learn.batch_size images over all devices, and
the fit of the stage encode, config.encode.batch_size images a device. --json prints one object:
{program: {argument_bytes, output_bytes, temporary_bytes (of one device), collectives: [[kind, numbers]],
compile_seconds}, devices, device}.
"""

import json
import os
import re
import sys
import time

_TOPOLOGY = sys.argv[1] if len(sys.argv) > 1 else ""
os.environ["JAX_PLATFORMS"] = "cpu"  # what runs here does not need the machine's own accelerator
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu: do not look for the TPU of this machine
if _CPU := re.fullmatch(r"cpu:([1-9]\d{0,3})", _TOPOLOGY):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_CPU[1]}"
    )

import jax  # noqa: E402
from absl import app, flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from functa.pipeline import validation  # noqa: E402
from functa.plan import xla_stats  # noqa: E402
from functa.runtime import cli_errors  # noqa: E402
from functa.runtime import mesh as mesh_lib  # noqa: E402
from functa.training.tasks import meta_learning  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def devices_of(topology: str) -> list[jax.Device]:
    """The devices that a topology describes.

    Raises:
      ValueError: it is none, or libtpu is not there.
    """
    if topology.startswith("cpu:") and _CPU:
        return jax.devices()
    if not re.fullmatch(r"v\d\w*:\d+x\d+(x\d+)?", topology):
        raise ValueError(f"TOPOLOGY={topology}: want cpu:N, or a TPU slice such as v5e:4x4")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of libtpu: not there, or it does not know the slice
        raise ValueError(f"TOPOLOGY={topology}: {str(error).splitlines()[0]}") from error


def measure(config, mesh) -> dict:
    """What the module's docstring says."""
    programs = {}
    for name, build in {"step": xla_stats.training_step, "encode": xla_stats.encoder}.items():
        begin = time.perf_counter()
        program = build(config, mesh)
        programs[name] = xla_stats.memory(program) | {
            "collectives": xla_stats.collectives(program),
            "compile_seconds": round(time.perf_counter() - begin, 1),
        }
    return programs | {"devices": mesh.size, "device": mesh.devices.flat[0].device_kind}


def main(argv: list[str]) -> int:
    del argv
    config = _CONFIG.value
    if config is None:
        return cli_errors.report_user_error("compile_for", "--config=configs/NAME.py is needed")
    try:
        devices = devices_of(_TOPOLOGY)
    except ValueError as error:
        return cli_errors.report_user_error("compile_for", str(error))
    problems = meta_learning.validate(config)
    try:
        mesh = mesh_lib.make_mesh(devices, **config.mesh)
        problems += validation.batch_problems(config, mesh, ["meta_learn"])
    except ValueError as error:
        problems.append(str(error))
    if problems:
        return cli_errors.report_user_error("compile_for", "\n".join(problems))
    result = measure(config, mesh)
    if _JSON.value:
        print(json.dumps(result))
        return 0
    print(f"{result.pop('devices')} x {result.pop('device')}, {config.name}")
    for name, program in result.items():
        sizes = {key: value for key, value in program.items() if key.endswith("bytes")}
        print(
            f"{name}: "
            + ", ".join(f"{key[:-6]} {value / 2**20:,.1f} MiB" for key, value in sizes.items())
        )
        for kind, numbers in program["collectives"]:
            print(f"  {kind} of {sum(numbers):,} numbers in {len(numbers)} arrays")
        print(f"  compiled in {program['compile_seconds']} s")
    return 0


if __name__ == "__main__":
    sys.argv[1:2] = []  # the topology is not absl's
    app.run(main, flags_parser=cli_errors.flags_parser("compile_for", _CONFIG))
