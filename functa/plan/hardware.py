"""Published data of chips and clusters, and the time of an all-reduce.

Peaks, sizes and bandwidths are published. The utilization and the latency of a hop are assumptions;
tools/benchmarks/field.py and tools/benchmarks/scaling.py measure them.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from jax.sharding import AbstractMesh

from functa.runtime import mesh as mesh_lib
from functa.runtime.errors import UserError


class Chip(NamedTuple):
    """One device. The defaults are those of a GPU in a DGX system.

    Attributes:
      source: publication of the numbers.
      peak: operations per second (two per multiply-add) of float32 matrix products at JAX's default
        precision: bfloat16 on a TPU, tensorfloat32 on a GPU that has it.
      peak_highest: the same at jax.lax.Precision.HIGHEST: six passes of bfloat16 on a TPU, no tensor
        cores on a GPU.
      memory: bytes; bandwidth: bytes per second between memory and chip.
      links: bytes per second that a device sends within its host or slice, half of the published sum
        of both directions.
      network: bytes per second that a device sends to other hosts.
      per_host: devices of the largest host; max_devices: of the largest cluster.
      per_slice_host: devices per host of a cluster of several hosts; 0: per_host.
      torus: dimensions of the torus that links the devices; 0 for switches.
      hop_seconds: latency from a device to its neighbor.
      cores: cores per device, if the name of a cluster has the number of cores.
      utilization: assumed fraction of the peak that matrix products reach.
    """

    source: str
    peak: float
    peak_highest: float
    memory: float
    bandwidth: float
    links: float
    network: float
    per_host: int = 8
    per_slice_host: int = 0
    max_devices: int = 1 << 14
    torus: int = 0
    hop_seconds: float = 5e-6
    cores: int = 1
    utilization: float = 0.2


def _tpu(source: str, peak: float, memory: float, bandwidth: float, links: float, **sizes) -> Chip:
    return Chip(source, peak, peak / 6, memory, bandwidth, links, links, hop_seconds=1e-6, **sizes)


CHIPS = {
    "v4": _tpu(
        "Google Cloud documentation, TPU v4; links: Jouppi et al. 2023, table 4",
        275e12, 32 * 2**30, 1200e9, 300e9, per_host=4, max_devices=4096, torus=3, cores=2,
    ),
    "v5e": _tpu(
        "Google Cloud documentation, TPU v5e",
        197e12, 16e9, 819e9, 200e9, per_slice_host=4, max_devices=256, torus=2,
    ),
    "v5p": _tpu(
        "Google Cloud documentation, TPU v5p",
        459e12, 95e9, 2765e9, 600e9, per_host=4, max_devices=6144, torus=3, cores=2,
    ),
    "v6e": _tpu(
        "Google Cloud documentation, TPU v6e",
        918e12, 32e9, 1638e9, 400e9, per_slice_host=4, max_devices=256, torus=2,
    ),
    "A100": Chip(
        "NVIDIA A100 80GB SXM data sheet; DGX A100 data sheet",
        156e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9,
    ),
    "H100": Chip(
        "NVIDIA H100 SXM data sheet, without sparsity; DGX H100 data sheet",
        495e12, 67e12, 80e9, 3350e9, 450e9, 50e9,
    ),
    "H200": Chip(
        "NVIDIA H200 SXM data sheet, without sparsity; DGX H200 data sheet",
        495e12, 67e12, 141e9, 4800e9, 450e9, 50e9,
    ),
    # One core of the machine of docs/PERFORMANCE.md. Memory and its bandwidth are estimates.
    "cpu": Chip(
        "docs/PERFORMANCE.md, docs/SCALE.md", 92e9, 92e9, 4e9, 10e9, 1e9, 1e9,
        per_host=64, max_devices=64, hop_seconds=5e-3, utilization=0.5,
    ),
}  # fmt: skip

ONE_HOST_EACH = ("v4-8", "v5e-8", "v5p-8", "v6e-8", "8xA100", "8xH100", "8xH200")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices of one kind.

    Attributes:
      name: as in the command.
      topology: libtpu's name of a TPU slice, such as "v5e:4x4"; "" for other devices.
    """

    name: str
    chip: Chip
    devices: int
    topology: str = ""

    @property
    def per_host(self) -> int:
        """Devices of each host."""
        if self.devices <= self.chip.per_host:
            return self.devices
        return self.chip.per_slice_host or self.chip.per_host

    @property
    def hosts(self) -> int:
        return -(-self.devices // self.per_host)

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a device sends in an all-reduce over all devices."""
        return self.chip.links if self.hosts == 1 else self.chip.network

    @property
    def hops(self) -> int:
        """Consecutive hops of an all-reduce: rings of a torus as square as possible, or a binary tree."""
        if self.devices == 1:
            return 0
        if self.chip.torus:
            side = math.ceil(round(self.devices ** (1 / self.chip.torus), 6))
            return 2 * self.chip.torus * (side - 1)
        return 2 * math.ceil(math.log2(self.devices))

    def send_seconds(self, size: float, collectives: int) -> float:
        """Time in which each device sends `size` bytes in `collectives` collectives."""
        return size / self.bandwidth + collectives * self.hops * self.chip.hop_seconds

    def mesh(self, *, data: int, fsdp: int, cell: int) -> AbstractMesh:
        """The mesh of config.mesh over the devices.

        Raises:
          ValueError: the product of the axes is not the number of devices, or `cell` spans hosts.
        """
        sizes = mesh_lib.axis_sizes(self.devices, data=data, fsdp=fsdp, cell=cell)
        if self.per_host % sizes["cell"]:
            raise UserError(
                f"mesh.cell={sizes['cell']} must divide the {self.per_host} devices of a host of {self.name}"
            )
        return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def parse(name: str) -> Cluster:
    """The cluster of a name such as `v5e-256`, `v5p-128` (128 cores, as Google counts), `64xH100` or `cpu:2`.

    Raises:
      UserError: the chip is unknown, or the number of devices is impossible.
    """
    match = re.fullmatch(r"(\d+)x(\w+)|(\w+)[-:](\d+)", name)
    kind = match and (match[2] or match[3]).replace("v5litepod", "v5e")
    if not match or kind not in CHIPS:
        raise UserError(
            f"hardware {name!r}: write a chip and a number, such as v5e-256, 64xH100 or cpu:2; "
            f"chips: {', '.join(CHIPS)}"
        )
    chip, cores = CHIPS[kind], CHIPS[kind].cores if match[4] else 1
    devices, rest = divmod(int(match[1] or match[4]), cores)
    if rest or not 1 <= devices <= chip.max_devices:
        unit = f", each with {cores} cores" if cores > 1 else ""
        raise UserError(f"hardware {name!r}: there are 1 to {chip.max_devices:,} devices{unit}")
    topology = f"{kind}:{_slice_shape(devices, chip.torus)}" if chip.torus else ""
    return Cluster(name, chip, devices, topology)


def _slice_shape(devices: int, dimensions: int) -> str:
    """Shape of a TPU slice of 2^n devices, as square as possible: 8 -> "2x4" or "2x2x2"."""
    sides = [1] * dimensions
    while math.prod(sides) < devices:
        sides[sides.index(min(sides))] *= 2
    return "x".join(map(str, sorted(sides, key=lambda side: (side == 1, side))))
