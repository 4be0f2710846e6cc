"""Answers of a loaded run in arrays: records, decoded images, samples, interpolation, inpainting.

Compiled programs and the latest samples are cached. One thread at a time may call a session.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cachetools import LRUCache, cached
from etils import epath

from functa.data import images
from functa.data.augmentation import read_copies
from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import open_functaset
from functa.diffusion.inpainter import Inpainter
from functa.diffusion.observation import Degradation, Observation, insert_observed, unobserved_mse
from functa.diffusion.trained_generator import TrainedGenerator
from functa.fields.decoder import make_decoder
from functa.fields.psnr import psnr
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import mesh
from functa.runtime.errors import UserError
from functa.training.checkpoint import digest

_AUGMENTATION = ("flip", "crop", "crop_padding", "crop_min_area")  # keys of config.encode
_MAX_SCALE, _MAX_SIDE = 16, 512  # 512 x 512 pixels take about 1 GiB at width 256
_DECODE_BATCH, _SAMPLE_BATCH = 16, 10
_SEARCHED = 8192  # records read for one page of a class
_MASKED = Degradation("all", 1, 0.0)  # pixels are observed unchanged; the mask is painted


class Sampling(NamedTuple):
    """Settings of the diffusion solver."""

    guidance: float
    steps: int
    solver: str


class Example(NamedTuple):
    """A record of the functaset, or a sample of the generator.

    Attributes:
      latents: [i, j, d] float32.
      label: class; num_classes stands for any class.
      caption: one line.
      original: [h, w, c] uint8; None for a sample, or if the images are missing.
      sample: (seed, number) of a sample; None for a record.
    """

    latents: np.ndarray
    label: int
    caption: str
    original: np.ndarray | None = None
    sample: tuple[int, int] | None = None


class Session:
    """A loaded run.

    Attributes:
      config, field, manifest: of the run, its stage meta_learn and its functaset.
      splits: number of records of each split that is not empty.
      num_classes, max_scale: number of classes; largest scale at which images may be decoded.
      images_problem, generator_problem: why there are no images, no generator; "" if there are.
    """

    def __init__(self, workdir: epath.PathLike, *, data_dir: str | None):
        """Loads field and functaset, and images and generator if they exist.

        Args:
          data_dir: replaces config.data.data_dir.
        Raises:
          ValueError: no run, no field, no functaset, or a functaset of another field.
        """
        run = epath.Path(workdir)
        self.config = config_lib.load(run)
        self.field, params = load.load_field(run)
        self._params = mesh.to_host(params)
        functaset = open_functaset(run / "functaset", field_digest=digest(self._params))
        self.manifest, self.num_classes = functaset.manifest, int(self.config.data.num_classes)
        counts = {name: functaset.num_examples(name) for name in self.manifest.splits}
        self.splits = {name: count for name, count in counts.items() if count}
        self._records = {name: functaset.source(name) for name in self.splits}
        self.max_scale = min(_MAX_SCALE, max(2, _MAX_SIDE // max(self.field.image_shape[:2])))
        self.images_problem = self.generator_problem = ""
        # The page shows a few images at a time, so no split is cached.
        data = {**self.config.data, "cache": "none"} | ({"data_dir": data_dir} if data_dir else {})
        try:
            self._images = images.open_splits(**data)
        except (ValueError, OSError) as error:
            self.images_problem = f"The images are missing: {error}"
        try:
            self._generator: Any = load.load_generator(run)
        except ValueError as error:  # not trained, damaged, or of another functaset
            self.generator_problem = f"There is no generator: {error}"

    def class_name(self, label: int) -> str:
        """Name of a class in a caption."""
        if not 0 <= label < self.num_classes:
            return "any class"
        name = self.manifest.class_names[label] if self.manifest.class_names else str(label)
        return f"class {name}" if name.isdigit() else name

    def browse(
        self, split: str, *, start: int, count: int, label: int | None
    ) -> tuple[list[Example], int | None]:
        """Reads up to `count` records from row `start` on, of one class or (label=None) of all.

        Returns:
          (examples, the next `start` or None at the end of the split). Examples are missing beyond
          the end, or if none of the next 8,192 records is of the class.
        """
        source, total = self._records[split], self.splits[split]
        rows = np.arange(start, min(start + (_SEARCHED if label is not None else count), total))
        following = start + len(rows)
        if label is not None and len(rows):
            rows = rows[source.read(rows)["label"] == label]
        if len(rows) > count:
            following = int(rows[count])
        examples = self.examples(split, rows[:count]) if len(rows) else []
        return examples, following if following < total else None

    def examples(self, split: str, rows: np.ndarray) -> list[Example]:
        """Records at `rows` [n] of a split, n > 0, with the images they were encoded from."""
        records = self._records[split].read(rows)
        originals: Any = [None] * len(rows)
        if not self.images_problem:
            try:
                originals = self._read_originals(split, records)
            except (IndexError, ValueError) as error:
                self.images_problem = f"The images do not belong to the functaset: {error}"
        examples = []
        for k, latents in enumerate(float32_latents(records)):
            label = int(records["label"][k])
            label = label if label >= 0 else self.num_classes
            copy = f", copy {records['copy'][k]}" if records["copy"][k] else ""
            name = f"{self.class_name(label)}, {records['psnr'][k]:.1f} dB, {split} {rows[k]}{copy}"
            examples.append(Example(latents, label, name, originals[k]))
        return examples

    def _read_originals(self, split: str, records: dict[str, np.ndarray]) -> np.ndarray:
        """Images [n, h, w, c] uint8 of n records, augmented as they were for encoding."""
        source = self._images[split]
        rows = records["id"] - source.read(np.arange(1))["id"]
        settings = {key: self.config.encode[key] for key in _AUGMENTATION}
        batch = read_copies(source, rows, records["copy"], seed=self.config.seed, **settings)
        if np.any(batch["label"] != records["label"]):
            raise ValueError(f"images and records of the split {split} have different classes")
        return batch["image"]

    def decode(self, latents: np.ndarray, *, scale: int) -> np.ndarray:
        """Decodes latents [n, i, j, d] to images [n, scale h, scale w, c] float32 in [0, 1]."""
        pixels = scale**2 * self.field.image_shape[0] * self.field.image_shape[1]
        batch = 1 if len(latents) == 1 else min(_DECODE_BATCH, max(1, _MAX_SIDE**2 // pixels))
        return self._decoder(scale, batch)(latents)

    def enlarge(self, example: Example, *, scale: int) -> np.ndarray:
        """Bicubic enlargement of the original or, without one, of the image decoded at scale 1.

        Returns: [scale h, scale w, c] float32 in [0, 1].
        """
        if example.original is None:
            image = self.decode(example.latents[None], scale=1)[0]
        else:
            image = example.original.astype(np.float32) / 255
        h, w, c = image.shape
        return np.clip(jax.image.resize(image, (scale * h, scale * w, c), "cubic"), 0, 1)

    def sample(self, labels: list[int], sampling: Sampling, *, seed: int) -> list[Example]:
        """Samples 0 to n - 1 of a seed; labels [n]. A sample does not depend on the others.

        Raises:
          ValueError: the generator cannot sample with these settings.
        """
        examples = []
        for number, latents in enumerate(self._sample(tuple(labels), sampling, seed)):
            name = f"{self.class_name(labels[number])}, sample {number}"
            examples.append(Example(latents, labels[number], name, sample=(seed, number)))
        return examples

    def interpolate(
        self, first: Example, last: Example, sampling: Sampling, *, count: int
    ) -> np.ndarray:
        """Latents [count, i, j, d] along the arc between the noise of two examples.

        The noise of a record is found by running the solver backwards, so the record returns only
        approximately.

        Raises:
          ValueError: the generator cannot sample with these settings.
        """
        generator = self._with_sampling(sampling)
        noise = [
            generator.initial_noise(
                seed=end.sample[0], numbers=np.asarray(end.sample[1:], np.int32)
            )
            if end.sample
            else generator.invert(end.latents[None], np.asarray([end.label], np.int32))
            for end in (first, last)
        ]
        labels = np.asarray([first.label, last.label], np.int32)
        return generator.interpolate(jnp.concatenate(noise), labels, count=count)

    def inpaint(
        self, image: np.ndarray, hidden: np.ndarray, *, samples: int, steps: int, seed: int
    ) -> dict[str, tuple[np.ndarray, float]]:
        """Fills in hidden pixels by posterior samples, and without a prior by fitting latents.

        Args:
          image: [h, w, c] uint8; hidden: [h, w] bool.
          samples: number of posterior samples; steps: noise levels; seed: of the samples.
        Returns:
          {caption: (image [h, w, c] float32 in [0, 1], PSNR over the hidden pixels in dB)}.
        Raises:
          ValueError: no pixel is hidden, or the generator does not know images of any class.
        """
        if not hidden.any():
            raise UserError("no pixel is hidden: paint over a part of the image first")
        inpainter = self._inpainter(steps)
        targets = image[None].astype(np.float32) / 255
        mask = np.broadcast_to(~hidden[None, :, :, None], targets.shape).astype(np.float32)
        observation = Observation(jnp.asarray(mask), jnp.asarray(mask * targets))
        # The seed takes the place of the id of the image, so that one program serves all seeds.
        drawn = inpainter.sample(observation, image_ids=np.asarray([seed]), count=samples)
        results = {"without prior": inpainter.reconstruct_without_prior(observation)}
        results |= {"mean of samples": drawn.mean(1)}
        results |= {f"sample {k + 1}": drawn[:, k] for k in range(samples)}
        answer = {}
        for name, result in results.items():
            filled = insert_observed(_MASKED, observation, result)
            mse = unobserved_mse(_MASKED, observation, filled, targets)
            answer[name] = filled[0], float(psnr(mse)[0])
        return answer

    @cached(LRUCache(4))
    def _sample(self, labels: tuple[int, ...], sampling: Sampling, seed: int) -> np.ndarray:
        """Latents [n, i, j, d] float32 of the samples 0 to n - 1."""
        numbers, classes = np.arange(len(labels), dtype=np.int32), np.asarray(labels, np.int32)
        generator = self._with_sampling(sampling)
        return generator.sample(
            seed=seed, numbers=numbers, labels=classes, batch_size=_SAMPLE_BATCH
        )

    @cached(LRUCache(8))
    def _with_sampling(self, sampling: Sampling) -> TrainedGenerator:
        """The generator with these settings; its programs are compiled once."""
        return self._generator.with_sampling(
            steps=sampling.steps, solver=sampling.solver, guidance_scale=sampling.guidance
        )

    @cached(LRUCache(3))
    def _inpainter(self, steps: int) -> Inpainter:
        return Inpainter(self._generator, _MASKED, steps=steps, seed=0)

    @cached(LRUCache(24))
    def _decoder(self, scale: int, batch: int) -> Callable[[np.ndarray], np.ndarray]:
        return make_decoder(self.field, self._params, batch_size=batch, scale=scale)
