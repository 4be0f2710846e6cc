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

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import open_functaset
from functa.diffusion import observation as observations
from functa.diffusion.inpainter import Inpainter
from functa.diffusion.observation import Degradation, Observation
from functa.diffusion.trained_generator import TrainedGenerator
from functa.explore.originals import Originals
from functa.fields.decoder import make_decoder
from functa.fields.psnr import psnr
from functa.pipeline import load
from functa.runtime import config as config_lib
from functa.runtime import mesh
from functa.runtime.errors import UserError
from functa.training.checkpoint import digest

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
        if not run.is_dir():
            raise UserError(f"{run} is not a directory")
        self.config = config_lib.load(run)
        self.field, params = load.load_field(run)
        self._params = mesh.to_host(params)
        functaset = open_functaset(run / "functaset", field_digest=digest(self._params))
        self.manifest, self.num_classes = functaset.manifest, int(self.config.data.num_classes)
        counts = {name: functaset.num_examples(name) for name in self.manifest.splits}
        self.splits = {name: count for name, count in counts.items() if count}
        self._records = {name: functaset.source(name, cache="none") for name in self.splits}
        self.max_scale = min(_MAX_SCALE, max(2, _MAX_SIDE // max(self.field.image_shape[:2])))
        self.images_problem = self.generator_problem = ""
        try:
            self._originals = Originals(self.config, data_dir=data_dir)
        except (ValueError, OSError) as error:
            self.images_problem = f"The images are missing: {error}"
        try:
            self.generator: Any = load.load_generator(run)  # a TrainedGenerator
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
          (examples, the next `start` or None at the end of the split).
        Raises:
          UserError: the split has no such row.
        """
        source, total = self._records[split], self.splits[split]
        if not 0 <= start < total:
            raise UserError(f"{split} has the rows 0 to {total - 1}, not {start}")
        rows = np.arange(start, min(start + (count if label is None else _SEARCHED), total))
        following = int(rows[-1]) + 1
        if label is not None:
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
                originals = self._originals.read(split, records)
            except UserError as error:
                self.images_problem = f"The images do not belong to the functaset: {error}"
        labels = np.where(records["label"] < 0, self.num_classes, records["label"])
        copies = [f", copy {copy}" if copy else "" for copy in records["copy"]]
        texts = [
            f"{value:.1f} dB, {split} {row}"
            for value, row in zip(records["psnr"], rows, strict=True)
        ]
        return [
            Example(latents, int(label), f"{self.class_name(label)}, {text}{copy}", original)
            for latents, label, text, copy, original in zip(
                float32_latents(records), labels, texts, copies, originals, strict=True
            )
        ]

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

    def sample(
        self,
        labels: list[int],
        sampling: Sampling,
        *,
        seed: int,
        progress: Callable[[tuple[int, int]], Any],
    ) -> list[Example]:
        """Samples 0, 1, ... of a seed; labels [n].

        Each sample depends only on its seed, number, label and settings.

        Args:
          progress: called with (samples done, n).
        Raises:
          UserError: the generator cannot sample with these settings.
        """
        examples: list[Example] = []
        for start in range(0, len(labels), _SAMPLE_BATCH):
            progress((start, len(labels)))
            batch = labels[start : start + _SAMPLE_BATCH]
            latents = self._sample_batch(seed, start, tuple(batch), sampling)
            examples += [
                Example(
                    latents[number - start],
                    label,
                    f"{self.class_name(label)}, sample {number}",
                    sample=(seed, number),
                )
                for number, label in enumerate(batch, start)
            ]
        return examples

    def interpolate(
        self, first: Example, last: Example, sampling: Sampling, *, count: int
    ) -> np.ndarray:
        """Latents [count, i, j, d] along the arc between the noise of two examples.

        The noise of a record is found by running the solver backwards, so the record returns only
        approximately.

        Raises:
          UserError: the generator cannot draw such samples.
        """
        noise = jnp.concatenate([self._noise(end, sampling) for end in (first, last)])
        labels = self._labels((first.label, last.label))
        return self._sampler(sampling).interpolate(noise, labels, count=count)

    def inpaint(
        self, image: np.ndarray, hidden: np.ndarray, *, draws: int, steps: int, seed: int
    ) -> dict[str, tuple[np.ndarray, float | None]]:
        """Fills in hidden pixels by posterior samples, and without a prior by fitting latents.

        Args:
          image: [h, w, c] uint8; hidden: [h, w] bool.
          draws: number of posterior samples; steps: noise levels; seed: of the samples.
        Returns:
          {caption: (image [h, w, c] float32 in [0, 1], PSNR over hidden pixels in dB)}; the first
          is [h, w, 4], transparent where pixels are hidden, and has no PSNR.
        Raises:
          ValueError: no pixel is hidden, or the generator needs a class.
        """
        if not hidden.any():
            raise UserError("no pixel is hidden: paint over a part of the image first")
        inpainter = self._inpainter(steps)
        images = image[None].astype(np.float32) / 255
        mask = np.broadcast_to(~hidden[None, :, :, None], images.shape).astype(np.float32)
        observation = Observation(jnp.asarray(mask), jnp.asarray(mask * images))
        # The seed takes the place of the id of the image, so that one program serves all seeds.
        samples = inpainter.sample(observation, image_ids=np.asarray([seed]), count=draws)
        results = {
            "without prior": inpainter.reconstruct_without_prior(observation),
            "mean": samples.mean(1),
        }
        results |= {f"sample {k + 1}": samples[:, k] for k in range(draws)}
        color = np.broadcast_to(images[0], (*hidden.shape, 3))
        visible = np.concatenate([color, mask[0, :, :, :1]], axis=-1)
        answer: dict[str, tuple[np.ndarray, float | None]] = {"visible": (visible, None)}
        for name, result in results.items():
            filled = observations.insert_observed(_MASKED, observation, result)
            mse = observations.unobserved_mse(_MASKED, observation, filled, images)
            answer[name] = filled[0], float(psnr(mse)[0])
        return answer

    def _labels(self, labels: tuple[int, ...]) -> np.ndarray:
        if self.num_classes in labels and not self.config.generate.label_dropout:
            raise UserError(
                "the generator was trained with generate.label_dropout=0: choose a class"
            )
        return np.asarray(labels, np.int32)

    def _noise(self, end: Example, sampling: Sampling) -> jax.Array:
        """Noisy latents [1, i, j, d] that the solver turns into an example."""
        if end.sample is not None:
            seed, number = end.sample
            numbers = np.asarray([number], np.int32)
            return self.generator.initial_noise(seed=seed, numbers=numbers)
        return self._sampler(sampling).invert(end.latents[None], self._labels((end.label,)))

    @cached(LRUCache(40))
    def _sample_batch(
        self, seed: int, start: int, labels: tuple[int, ...], sampling: Sampling
    ) -> np.ndarray:
        return self._sampler(sampling).sample(
            seed=seed,
            numbers=np.arange(start, start + len(labels), dtype=np.int32),
            labels=self._labels(labels),
            batch_size=_SAMPLE_BATCH,
        )

    @cached(LRUCache(8))
    def _sampler(self, sampling: Sampling) -> TrainedGenerator:
        """The generator with these settings; its programs are compiled once."""
        try:
            return self.generator.with_sampling(
                steps=sampling.steps, solver=sampling.solver, guidance_scale=sampling.guidance
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    @cached(LRUCache(3))
    def _inpainter(self, steps: int) -> Inpainter:
        return Inpainter(self.generator, _MASKED, steps=steps, seed=0)

    @cached(LRUCache(24))
    def _decoder(self, scale: int, batch: int) -> Callable[[np.ndarray], np.ndarray]:
        return make_decoder(self.field, self._params, batch_size=batch, scale=scale)
