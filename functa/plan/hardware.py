"""Clusters as their makers describe them, and what an all-reduce takes there.

Peaks, sizes and bandwidths are published; utilisation and the seconds of a hop are guesses, told wherever a
number depends on them, and to be replaced by what tools/bench_step.py and tools/bench_scaling.py measure there.
"""

import dataclasses
import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
    """One device of a cluster.

    Attributes:
      source: of the numbers.
      peak: operations a second (two a multiply-add) of float32 products as JAX does them by default: of
        bfloat16 on a TPU, of tensorfloat32 on a GPU that has it.
      peak_highest: of float32 products at jax.lax.Precision.HIGHEST, which Muon asks for: six passes of bfloat16
        on a TPU, no tensor cores on a GPU.
      memory: bytes; bandwidth: bytes a second between it and the chip.
      links: bytes a second that a device sends to others of its host or slice.
      network: bytes a second that a device sends beyond that, where its cluster is larger than one.
      per_host: devices of a host; most: devices of the largest cluster.
      torus: dimensions of the torus that links the devices; 0: switches.
      hop_seconds: from a device to the next.
      cores: of a device in the cluster's name, where that counts cores.
      utilisation: of the peak that is reached.
    """

    source: str
    peak: float
    peak_highest: float
    memory: float
    bandwidth: float
    links: float
    network: float
    per_host: int
    most: int
    torus: int
    hop_seconds: float
    cores: int
    utilisation: float


def _tpu(source: str, peak: float, memory: float, bandwidth: float, links: float, **rest) -> Chip:
    return Chip(
        source, peak, peak / 6, memory, bandwidth, links, links, hop_seconds=1e-6, utilisation=0.2, **rest
    )  # fmt: skip


def _gpu(
    source: str, tf32: float, fp32: float, memory: float, bandwidth: float, links: float, network: float
) -> Chip:  # fmt: skip
    return Chip(
        source, tf32, fp32, memory, bandwidth, links, network,
        per_host=8, most=1 << 14, torus=0, hop_seconds=5e-6, cores=1, utilisation=0.2,
    )  # fmt: skip


# Links: half of what is published for both directions together. Network of a GPU: its own port of the DGX system.
CHIPS = {
    "v4": _tpu(
        "Google Cloud documentation, TPU v4; links: Jouppi et al. 2023, table 4",
        275e12, 32 * 2**30, 1200e9, 300e9, per_host=4, most=4096, torus=3, cores=2,
    ),
    "v5e": _tpu(
        "Google Cloud documentation, TPU v5e",
        197e12, 16e9, 819e9, 200e9, per_host=8, most=256, torus=2, cores=1,
    ),
    "v5p": _tpu(
        "Google Cloud documentation, TPU v5p",
        459e12, 95e9, 2765e9, 600e9, per_host=4, most=6144, torus=3, cores=2,
    ),
    "v6e": _tpu(
        "Google Cloud documentation, TPU v6e",
        918e12, 32e9, 1638e9, 400e9, per_host=8, most=256, torus=2, cores=1,
    ),
    "A100": _gpu(
        "NVIDIA A100 80GB SXM data sheet; DGX A100 data sheet",
        156e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9,
    ),
    "H100": _gpu(
        "NVIDIA H100 SXM data sheet, without sparsity; DGX H100 data sheet",
        495e12, 67e12, 80e9, 3350e9, 450e9, 50e9,
    ),
    "H200": _gpu(
        "NVIDIA H200 SXM data sheet, without sparsity; DGX H200 data sheet",
        495e12, 67e12, 141e9, 4800e9, 450e9, 50e9,
    ),
    # A core of the machine that docs/PERFORMANCE.md is of: products at 92 G multiply-adds a second on two cores, of
    # which a step reaches 30 to 77 %; gloo takes about 5 ms a hop (docs/SCALE.md). Memory and its bandwidth: guesses.
    "cpu": Chip(
        "docs/PERFORMANCE.md, docs/SCALE.md",
        92e9, 92e9, 4e9, 10e9, 1e9, 1e9,
        per_host=64, most=64, torus=0, hop_seconds=5e-3, cores=1, utilisation=0.5,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cluster:
    """`devices` chips of one kind; `name` as it was asked for."""

    name: str
    chip: Chip
    devices: int

    @property
    def hosts(self) -> int:
        return -(-self.devices // self.chip.per_host)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a device sends in an all-reduce of all."""
        return self.chip.links if self.hosts == 1 else self.chip.network

    @property
    def hops(self) -> int:
        """One after the other, in an all-reduce: rings of a torus as square as it can be, or a binary tree."""
        if self.devices == 1:
            return 0
        if self.chip.torus:
            side = math.ceil(round(self.devices ** (1 / self.chip.torus), 6))
            return 2 * self.chip.torus * (side - 1)
        return 2 * math.ceil(math.log2(self.devices))

    def send_seconds(self, size: float, collectives: int) -> float:
        """Of so many bytes sent by every device, in so many collectives of all."""
        return size / self.bandwidth + collectives * self.hops * self.chip.hop_seconds


def parse(topology: str) -> Cluster:
    """`v5e-256`, `v5p-128` (as Google names them: cores where its names count cores), `64xH100`, `cpu:2`.

    Raises:
      ValueError: it is none of these; the message lists what is known.
    """
    known = ", ".join(CHIPS)
    found = re.fullmatch(r"(?:(\d+)x)?(v\d\w*?|cpu|[A-Z]\d+)(?:[-:](\d+))?", topology)
    if not found or (found[1] is None) == (found[3] is None):
        raise ValueError(
            f"TOPOLOGY={topology}: want a chip and a number, as v5e-256, 64xH100 or cpu:2; chips: {known}"
        )
    name = {"v5litepod": "v5e"}.get(found[2], found[2])
    if name not in CHIPS:
        raise ValueError(f"TOPOLOGY={topology}: unknown chip {found[2]}; known are {known}")
    chip, count = CHIPS[name], int(found[1] or found[3])
    cores = chip.cores if found[3] else 1
    if count < 1 or count % cores or count // cores > chip.most:
        wanted = f"1 to {chip.most:,} chips"
        if cores > 1:
            wanted = f"a multiple of {cores}, at most {chip.most:,} chips of {cores} cores"
        raise ValueError(f"TOPOLOGY={topology}: want {wanted}")
    return Cluster(topology, chip, count // cores)
