"""Projected cost of a stage, and the numbers that it is computed from."""

import dataclasses
from typing import NamedTuple

from functa.plan.compiled import Analysis
from functa.plan.operations import Operations


class Assumptions(NamedTuple):
    """Numbers that are neither counted nor published.

    Attributes:
      utilization: fraction of the peak of the chip that matrix products reach.
      decode_rate: images per second that a host decodes.
      image_bytes: size of a stored image.
      storage_bandwidth: bytes per second between a host and storage.
    """

    utilization: float
    decode_rate: float
    image_bytes: float
    storage_bandwidth: float


class Source(NamedTuple):
    """The examples of all splits that a stage reads.

    Attributes:
      stored_bytes, cached_bytes: size of an example in storage and in memory.
      decode_seconds: time in which a host decodes an example.
      cache: none, host or device.
    """

    examples: int
    stored_bytes: float
    cached_bytes: int
    decode_seconds: float
    cache: str


@dataclasses.dataclass(kw_only=True)
class StagePlan:
    """Projected cost of a stage. A step of encode is one batch on all devices.

    Attributes:
      examples: training examples; in encode, records of all splits.
      steps: in encode, those of the host with most batches.
      batch_size: over all devices, repeated examples included.
      parameters: number of trained parameters.
      state_bytes: training state on one device.
      work: of a step on one device.
      step_parts, other_parts: seconds of each part of a step, and of everything beside the steps.
      host_bytes: bytes that a host reads and writes in storage in a step.
      cache_bytes: size of the cached examples in the memory of each "host" or "device".
      storage_bytes: size of the files that the stage leaves in storage.
      shards: files of the functaset.
      analysis: that of the compiled step; None if it was not compiled.
      measured_seconds: time of the step on this machine; None if it was not measured.
    """

    name: str
    examples: int
    steps: int
    batch_size: int
    parameters: int = 0
    state_bytes: int
    work: Operations
    step_parts: dict[str, float]
    other_parts: dict[str, float]
    host_bytes: float
    cache_bytes: dict[str, int]
    storage_bytes: float
    shards: int = 0
    analysis: Analysis | None = None
    measured_seconds: float | None = None

    @property
    def step_seconds(self) -> float:
        """Time of a step. Decoding and storage run in parallel to the devices."""
        p = self.step_parts
        devices = p["products"] + p["products at highest precision"] + p["collectives"]
        return max(devices, p["decoding"], p["storage"])

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + sum(self.other_parts.values())

    @property
    def limit(self) -> str:
        """The part of the stage that takes most time."""
        parts = {name: self.steps * value for name, value in self.step_parts.items()}
        parts |= self.other_parts
        return max(parts, key=lambda name: parts[name])
