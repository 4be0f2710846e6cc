"""Samples that a generator is evaluated on, written to files by all processes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from functa.diffusion import sharded_sampling
from functa.diffusion.generator import Generator
from functa.runtime.config import read_json, write_json
from functa.training.progress import ProgressBar

MAX_SWEEP_SAMPLES = 250  # for each scale of the guidance sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSamples:
    """Files of samples for the metrics, and of fewer samples for each scale of the guidance sweep.

    Attributes:
      params: parameters of `generator`, on the host.
      key: random key of all samples.
      labels: [n] int32, one for each sample of the metrics; the sweep uses the first ones.
      batch_size: samples per file, and per device at a time.
    """

    directory: epath.Path
    generator: Generator
    params: Any
    key: jax.Array
    labels: np.ndarray
    guidance_sweep: tuple[float, ...]
    batch_size: int

    def write(
        self,
        *,
        say: Callable[[str], None],
        stop: Callable[[], None],
        process_index: int,
        process_count: int,
    ) -> float:
        """Writes the missing samples of this process.

        Args:
          stop: called between blocks; may raise.
        Returns:
          Samples per second of all processes, measured by process 0 when it last wrote samples.
        """

        def sample(inputs, numbers, labels):
            params, scale = inputs["params"], inputs.get("scale")
            samples = self.generator.sample(params, self.key, numbers, labels, guidance_scale=scale)
            return samples.latents

        def write_blocks(name: str, labels: np.ndarray, **inputs: Any) -> float:
            return sharded_sampling.write_blocks(
                self.directory / name,
                sample=sample,
                params={"params": self.params, **inputs},
                labels=labels,
                block_size=self.batch_size,
                progress=ProgressBar(say, f"generate  blocks of samples, {name}"),
                stop=stop,
                process_index=process_index,
                process_count=process_count,
            )

        rate = write_blocks("evaluation", self.labels)
        speed_path = self.directory / "speed.json"
        if rate and process_index == 0:
            count = len(self.labels)
            blocks = sharded_sampling.blocks_of_process(count, self.batch_size, 0, process_count)
            own_count = min(count, self.batch_size * len(blocks))
            write_json(speed_path, {"samples_per_second": rate * count / own_count})
        for scale in self.guidance_sweep:
            labels = self.labels[:MAX_SWEEP_SAMPLES]
            write_blocks(_sweep_name(scale), labels, scale=np.float32(scale))
        return read_json(speed_path)["samples_per_second"] if speed_path.exists() else 0.0

    def read(self) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        """Latents [n, i, j, d] for the metrics, and {guidance scale: latents} of the sweep."""

        def read_blocks(name: str, count: int) -> np.ndarray:
            return sharded_sampling.read_blocks(
                self.directory / name, count=count, block_size=self.batch_size
            )

        count = min(len(self.labels), MAX_SWEEP_SAMPLES)
        sweep = {
            float(scale): read_blocks(_sweep_name(scale), count) for scale in self.guidance_sweep
        }
        return read_blocks("evaluation", len(self.labels)), sweep


def _sweep_name(scale: float) -> str:
    return f"guidance-{float(scale)!r}"
