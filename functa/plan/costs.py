"""What a stage costs, and by which assumptions: the result of functa/plan.py."""

import dataclasses
from typing import NamedTuple

from functa.plan import memory_traffic
from functa.plan.program_operations import Cost

HOUR = 3600.0  # seconds


class Assumptions(NamedTuple):
    """What is neither counted nor published.

    Attributes:
      utilisation: of the chip's peak, in matrix products.
      decode_rate: images that a host decodes a second.
      image_bytes: of an image where it is stored.
      storage_bandwidth: bytes a second between a host and where images and functasets lie.
    """

    utilisation: float
    decode_rate: float
    image_bytes: float
    storage_bandwidth: float


@dataclasses.dataclass(kw_only=True)
class Stage:
    """What a stage costs.

    Attributes:
      name: of the stage.
      examples: images or records that it goes over; steps, batch_size: over all devices. A step of encode is
        a batch on every device, and its steps are those of the host that has most of them.
      parameters: numbers that are trained; state_bytes: of them, their average and the optimiser, on a device.
      cost: multiply-adds of one device; optimizer: of an update, likewise, the same on every device.
      operations: of all steps on all devices, two a multiply-add.
      program: what XLA says of the compiled program; None if it was not compiled.
      sent_bytes: by a device in a step.
      seconds: of a step: products, optimizer, all-reduce, input, storage.
      traffic_seconds: that the memory of a device takes to move what the compiled program moves in a step. It is no
        part of the step's seconds: the program is one for CPUs, and other compilers keep more to themselves.
      extra_hours: beside the steps, by what takes them.
      host_bytes: that a host reads and writes in a step, from and to where images and functasets lie.
      read_bytes: that all hosts read in the whole stage, from there.
      kept_bytes: that it keeps in the memory of every host or of every device: {"host": ...} or {"device": ...}.
      storage_bytes: that the stage leaves behind; shards: files of the functaset.
    """

    name: str
    examples: int
    steps: int
    batch_size: int
    parameters: int
    state_bytes: int
    cost: Cost
    optimizer: int
    operations: float
    program: memory_traffic.Program | None
    sent_bytes: float
    seconds: dict[str, float]
    traffic_seconds: float
    extra_hours: dict[str, float]
    host_bytes: float
    read_bytes: float
    kept_bytes: dict[str, float]
    storage_bytes: float
    shards: int

    @property
    def step_seconds(self) -> float:
        s = self.seconds
        computing = s["products"] + s["optimizer"] + s["all-reduce"]
        return max(computing, s["input"], s["storage"])

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / HOUR + sum(self.extra_hours.values())

    @property
    def limit(self) -> str:
        """What takes most hours by itself."""
        hours = {name: self.steps * value / HOUR for name, value in self.seconds.items()}
        hours |= self.extra_hours
        return max(hours, key=lambda name: hours[name])
